"""What the training scripts of latent models share: stages, captions, the loss, and records."""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from bdia_exp.store.files import atomic


class Stage:
    """Networks in training, with their optimiser and averages, and the file they continue from."""

    def __init__(self, name: str, parts: dict[str, nn.Module], cfg: Any):
        self.cfg, self.device = cfg[name], cfg.device
        self.seed, self.save_seconds = cfg.seed, cfg.save_seconds
        self.file = Path(cfg.out) / f"{name}.pt"
        self.log = self.file.with_suffix(".csv")
        self.net = nn.ModuleDict(parts).to(cfg.device)
        self.ema = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.opt = torch.optim.Adam(self.net.parameters(), lr=1.0, betas=(0.9, 0.99))
        self.seen, self.seconds = 0, 0.0
        if self.file.exists():
            state = torch.load(self.file, map_location=cfg.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.opt.load_state_dict(state["opt"])
            self.ema, self.seen, self.seconds = (state[k] for k in ("ema", "seen", "seconds"))

    def save(self) -> None:
        """Replaces the old file in one step: an interruption loses nothing."""
        state = {"net": self.net.state_dict(), "opt": self.opt.state_dict(), "ema": self.ema}
        with atomic(self.file) as part:
            torch.save({**state, "seen": self.seen, "seconds": self.seconds}, part)

    def note(self, losses: list[float], images: int, seconds: float) -> None:
        """Adds a line to the log: images seen, mean loss, images per second, seconds in all."""
        new = not self.log.exists()
        with open(self.log, "a", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerows([["images", "loss", "images_per_second", "seconds"]] if new else [])
            row = [self.seen, f"{np.mean(losses):.5f}", f"{images / seconds:.1f}"]
            table.writerow([*row, round(self.seconds)])
        print(f"{self.file.stem}: {row[0]} images, loss {row[1]}, {row[2]} images/s", flush=True)

    def rate(self) -> float:
        """The learning rate: it rises, is constant, and falls to zero."""
        left = 1 - self.seen / (self.cfg.kimg * 1000)
        warm = (self.seen + self.cfg.batch) / (self.cfg.warmup_kimg * 1000)
        return self.cfg.lr * min(1.0, warm, left / self.cfg.decay)

    def step(self, loss: Tensor) -> None:
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for group in self.opt.param_groups:
            group["lr"] = self.rate()
        self.opt.step()
        self.seen += self.cfg.batch
        halflife = min(self.cfg.ema_halflife_kimg * 1000, self.seen * self.cfg.ema_rampup)
        keep = 0.5 ** (self.cfg.batch / halflife)
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - keep)

    def train(self, loss_of: Callable[[torch.Generator], Tensor]) -> nn.ModuleDict:
        """Trains up to cfg.kimg and returns the networks with their averaged weights."""
        losses: list[float] = []
        began, first = time.time(), self.seen
        while self.seen < self.cfg.kimg * 1000:
            # One generator per step: a resumed run draws the same numbers as an unbroken one.
            rng = torch.Generator(self.device).manual_seed((self.seed << 40) + self.seen)
            loss = loss_of(rng)
            self.step(loss)
            losses.append(loss.item())
            last = self.seen >= self.cfg.kimg * 1000
            if last or time.time() - began > self.save_seconds:
                self.seconds += time.time() - began
                self.save()
                self.note(losses, self.seen - first, time.time() - began)
                losses, began, first = [], time.time(), self.seen
        self.net.load_state_dict(self.ema)
        return self.net.eval().requires_grad_(False)

    def record(self) -> dict[str, Any]:
        """How far the training came, and its losses as [images seen, mean loss]."""
        rows = np.zeros((0, 2))
        if self.seen:
            rows = np.loadtxt(self.log, delimiter=",", skiprows=1, ndmin=2)
        return {
            "images_seen": self.seen,
            "seconds": round(self.seconds),
            "images_per_second": round(self.seen / max(self.seconds, 1), 1),
            "loss": rows[:, :2].tolist(),
        }


def record_of(script: str, cfg: Any, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """How a training was started."""
    return {
        "command": " ".join([f"python scripts/{script} --config", config, *overrides]),
        "config": OmegaConf.to_container(cfg),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def read_images(file: Path) -> tuple[Tensor, np.ndarray]:
    """The images of scripts/captions.py, uint8 [N, C, H, W], and their captions, texts [N, K]."""
    data = np.load(file)
    return torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous(), data["captions"]


class Captions:
    """The tokens of all captions, texts [N, K]."""

    def __init__(self, texts: np.ndarray, tokenizer: Any):
        tokens = tokens_of(tokenizer, texts.flatten().tolist())
        self.tokens = tokens.view(*texts.shape, -1)
        self.nothing = tokens_of(tokenizer, [""])[0]

    def draw(self, rng: torch.Generator, count: int, empty: float) -> tuple[Tensor, Tensor]:
        """Images by their places, int64 [count], and the tokens of a caption of each.

        A share `empty` of the captions is replaced by the empty prompt.
        """
        images, texts = self.tokens.shape[:2]
        u = torch.rand(3, count, generator=rng, device=rng.device).cpu()
        pick, which = (u[0] * images).long(), (u[1] * texts).long()
        own = torch.where((u[2] < empty)[:, None], self.nothing, self.tokens[pick, which])
        return pick, own


def latents_of(vae: Any, images: Tensor) -> Tensor:
    """The means of the autoencoder's distributions, unscaled."""
    device = next(vae.parameters()).device
    parts = images.split(250)
    return torch.cat([vae.encode(scaled(x.to(device))).latent_dist.mean.cpu() for x in parts])


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    rng: torch.Generator,
    abar: Tensor,
    snr: float,
) -> Tensor:
    """The mean of ‖ε̂ − ε‖² at uniform times, each weighted by min(SNR, snr)/SNR.

    ε̂ is predict(state, times), of the clean latents z [B, C, h, w].
    """
    t = torch.randint(len(abar), (len(z),), generator=rng, device=z.device)
    eps = torch.randn(z.shape, generator=rng, device=z.device)
    a = abar[t].view(-1, 1, 1, 1)
    found = predict(a.sqrt() * z + (1 - a).sqrt() * eps, t)
    ratio = abar[t] / (1 - abar[t])
    return (((found - eps) ** 2).mean((1, 2, 3)) * (ratio.clamp(max=snr) / ratio)).mean()


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
