#!/usr/bin/env python3
"""Trains an EDM model [EDM Table 1, App. F] and writes it as safetensors plus a JSON.

    python scripts/train_edm.py --config configs/training/fashion_mini.yaml device=cuda
    torchrun --standalone --nproc_per_node=2 scripts/train_edm.py --config …

Arguments after the options override the configuration (`kimg=2000 lr=1e-3`). A stopped run, when
started again, continues from its last save; a finished run continues if `kimg` is larger.
`init=bundled:fashion_mini.safetensors out=…` starts a new run from the weights of an old one.
On a CPU two processes of one thread each are faster than one process of two.
"""

import json
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from bdia_exp import dist
from bdia_exp.models import parameter_count
from bdia_exp.models.edm import EDMPrecond
from bdia_exp.models.running import keep_freed_memory
from bdia_exp.sources.checkpoints import load_into, locate, read
from bdia_exp.store.files import atomic, write_text


def edm_loss(net, x, labels, rng, P_mean, P_std):
    """The mean of λ(σ)‖D(x + n; σ) − x‖², with one σ and n per image [EDM 2, 5, Table 1]."""
    z = torch.randn(x.shape[0], 1, 1, 1, generator=rng, device=x.device)
    sigma = (P_mean + P_std * z).exp()
    weight = (sigma**2 + net.sigma_data**2) / (sigma * net.sigma_data) ** 2
    noise = torch.randn(x.shape, generator=rng, device=x.device) * sigma
    return (weight * (net(x + noise, sigma.flatten(), labels) - x) ** 2).mean()


def learning_rate(cfg, images: int) -> float:
    """Linear warm-up, then a cosine to zero at the end of the run."""
    warm = min(1.0, images / max(cfg.warmup_kimg * 1000, 1))
    return cfg.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, images / (cfg.kimg * 1000))))


def save(path: Path, state: dict) -> None:
    """Writes a new file and replaces the old one in one step: an interruption loses nothing."""
    with atomic(path) as part:
        torch.save(state, part)


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1)
def main(config: str, overrides: tuple[str, ...]) -> None:
    cfg = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
    if dist.in_torchrun() and cfg.device == "cpu":
        torch.set_num_threads(1)
    dist.start(cfg.device)
    device = torch.device(cfg.device)
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)

    data = np.load(cfg.data)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data["labels"]).long()

    torch.manual_seed(cfg.seed)
    net = EDMPrecond(**OmegaConf.to_container(cfg.network))  # type: ignore[arg-type]
    if cfg.init:
        load_into(net, read(locate(cfg.init)))
    net.to(device).to(memory_format=torch.channels_last)
    if cfg.device == "cpu":
        keep_freed_memory()
    net.body_dtype = getattr(torch, cfg.body_dtype)
    ema = {name: value.detach().clone() for name, value in net.state_dict().items()}
    opt = torch.optim.Adam(net.parameters(), lr=cfg.lr, betas=(0.9, 0.99), eps=1e-8)
    seen, seconds, losses = 0, 0.0, []

    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        ema, seen, seconds, losses = (state[k] for k in ("ema", "seen", "seconds", "losses"))

    def checkpoint() -> None:
        if dist.rank() == 0:
            save(
                out / "state.pt",
                dict(
                    net=net.state_dict(),
                    opt=opt.state_dict(),
                    ema=ema,
                    seen=seen,
                    seconds=seconds,
                    losses=losses,
                ),
            )

    local = cfg.batch // dist.world()
    recent, saved, began = [], time.time(), time.time()
    while seen < cfg.kimg * 1000:
        # A seed for each step and rank: a resumed run draws the same numbers as an unbroken one.
        # The network's own dropout takes its numbers from the global generator.
        step = (cfg.seed << 48) + (seen // cfg.batch) * dist.world() + dist.rank()
        rng = torch.Generator(device).manual_seed(step)
        torch.manual_seed(step)
        pick = torch.randint(len(images), (local,), generator=rng, device=device).cpu()
        x = images[pick].to(device).float() / 127.5 - 1
        onehot = torch.eye(net.label_dim, device=device)[labels[pick]] if net.label_dim else None
        for group in opt.param_groups:
            group["lr"] = learning_rate(cfg, seen)
        opt.zero_grad(set_to_none=True)
        loss = edm_loss(net, x, onehot, rng, cfg.P_mean, cfg.P_std)
        loss.backward()
        dist.average_([p.grad for p in net.parameters() if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        seen += cfg.batch
        halflife = min(cfg.ema_halflife_kimg * 1000, seen * cfg.ema_rampup)
        keep = 0.5 ** (cfg.batch / max(halflife, 1e-8))
        for name, value in net.state_dict().items():
            ema[name].lerp_(value, 1 - keep)
        recent.append(loss.item())

        if dist.broadcast(time.time() - saved > cfg.save_seconds):
            seconds += time.time() - saved
            losses.append([seen, round(float(np.mean(recent)), 5)])
            recent, saved = [], time.time()
            checkpoint()
            if dist.rank() == 0:
                print(
                    f"{seen / 1000:.0f} kimg  loss {losses[-1][1]:.4f}  {seconds:.0f} s", flush=True
                )

    seconds += time.time() - saved
    checkpoint()
    if dist.rank() == 0:
        dtype = getattr(torch, cfg.weights_dtype)
        weights = {name: value.to(dtype).contiguous().cpu() for name, value in ema.items()}
        with atomic(out / "model.safetensors") as part:
            save_file(weights, part)
        record = {
            "network": OmegaConf.to_container(cfg.network),
            "training": {
                "config": OmegaConf.to_container(cfg),
                "parameters": parameter_count(net),
                "images_seen": seen,
                "seconds": round(seconds),
                "processes": dist.world(),
                "torch": torch.__version__,
                "loss": losses,
            },
        }
        write_text(out / "model.json", json.dumps(record, indent=1) + "\n")
        print(f"wrote {out / 'model.safetensors'} after {time.time() - began:.0f} s")
    dist.stop()


if __name__ == "__main__":
    main()
