#!/usr/bin/env python3
"""Trains `mini_sd`, a small Stable Diffusion of coloured garments, and writes it as a folder.

First the autoencoder; then a text encoder and a U-Net together, on the latents of all images,
with ε-prediction [BDIA 1] and empty prompts for guidance.

    python scripts/train_mini_sd.py --config configs/training/mini_sd.yaml device=cuda

Arguments after the options override the configuration (`diffusion.kimg=2000`). A stopped run, when
started again, continues from its last save; a finished run continues if `kimg` is larger. A larger
`autoencoder.kimg` makes other latents: remove latents.pt and diffusion.pt first. Each stage writes
`STAGE.csv`, a line for each save; `stop=autoencoder` ends after the first. A new run can start from
the weights of an old one: `init=bundled:mini_sd autoencoder.kimg=0 out=…` trains the second stage.

Its output is `mini_sd/`, in diffusers' layout and float16, and `mini_sd.json`, the record.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from latent_training import (
    Captions,
    Stage,
    diffusion_loss,
    latents_of,
    read_images,
    record_of,
    scaled,
)
from omegaconf import OmegaConf
from torch import Tensor, nn

from bdia_exp.models import parameter_count
from bdia_exp.models.clip_tokenizer import END
from bdia_exp.models.sd_files import build, plain, schedule
from bdia_exp.models.stable_diffusion import load
from bdia_exp.store.files import atomic, write_text


def network(part: str, cfg: Any, **more: Any) -> nn.Module:
    """A part with new weights, or with those of the folder cfg.init."""
    if cfg.init:
        return load(cfg.init).parts[part].train().requires_grad_(True)
    return build(part, {**plain(cfg.network[part]), **more})


def autoencoder_loss(vae: Any, x: Tensor, rng: torch.Generator, cfg: Any) -> Tensor:
    """Squared error, with a little of L1, of the mean colour's error and of KL."""
    posterior = vae.encode(x).latent_dist
    mean, noise = posterior.mean, torch.randn(posterior.mean.shape, generator=rng, device=x.device)
    z = mean + posterior.std * noise
    error = vae.decode(z).sample - x
    kl = 0.5 * (mean**2 + posterior.var - 1 - posterior.logvar).mean()
    colour = (error.mean((2, 3)) ** 2).mean()
    return (error**2).mean() + cfg.l1 * error.abs().mean() + cfg.colour * colour + cfg.kl * kl


def standardise(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Gives each latent channel the mean 0 and the standard deviation 1; images do not change.

    The 1×1 convolutions on both sides of the latents take it: z → (z − mean)/std, and back.
    """
    inner, outer, count = vae.quant_conv, vae.post_quant_conv, len(mean)
    outer.bias += outer.weight[:, :, 0, 0] @ mean
    outer.weight *= std.view(1, -1, 1, 1)
    inner.bias[:count] = (inner.bias[:count] - mean) / std
    inner.weight[:count] /= std.view(-1, 1, 1, 1)
    inner.bias[count:] -= 2 * std.log()  # the logarithms of the variances


def tokenizer_of(folder: Path, longest: int) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, model_max_length=longest, pad_token=END)


def train_autoencoder(cfg: Any, images: Tensor) -> tuple[Stage, Any]:
    torch.manual_seed(cfg.seed)
    stage = Stage("autoencoder", {"vae": network("vae", cfg)}, cfg)
    net: Any = stage.net["vae"]

    def loss_of(rng: torch.Generator) -> Tensor:
        batch = (cfg.autoencoder.batch,)
        pick = torch.randint(len(images), batch, generator=rng, device=cfg.device)
        x = scaled(images[pick.cpu()].to(cfg.device))
        return autoencoder_loss(net, x, rng, cfg.autoencoder)

    vae = stage.train(loss_of)["vae"]
    file = Path(cfg.out) / "latents.pt"
    if not file.exists():
        z = latents_of(vae, images)
        with atomic(file) as part:
            torch.save({"latents": z, "mean": z.mean((0, 2, 3)), "std": z.std((0, 2, 3))}, part)
    found = torch.load(file, weights_only=True)
    mean, std = found["mean"], found["std"]
    standardise(vae, mean.to(cfg.device), std.to(cfg.device))
    vae.register_to_config(scaling_factor=1.0)
    return stage, (vae, (found["latents"] - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))


def train_diffusion(cfg: Any, z: Tensor, captions: np.ndarray, tokenizer: Any) -> Stage:
    torch.manual_seed(cfg.seed + 1)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    marks |= {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    parts = {
        "text_encoder": network("text_encoder", cfg, **marks),
        "unet": network("unet", cfg),
    }
    stage = Stage("diffusion", parts, cfg)
    texts = Captions(captions, tokenizer)
    abar = torch.tensor(schedule(cfg.network.scheduler).abar, device=cfg.device)

    def loss_of(rng: torch.Generator) -> Tensor:
        own, nets = cfg.diffusion, dict(stage.net.items())
        pick, tokens = texts.draw(rng, own.batch, own.empty)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            states = nets["text_encoder"](tokens.to(cfg.device)).last_hidden_state
            return nets["unet"](x, t, states).sample

        return diffusion_loss(predict, z[pick].to(cfg.device), rng, abar, own.snr)

    stage.train(loss_of)
    return stage


def write(cfg: Any, vae: Any, diffusion: Stage, tokenizer: Any) -> Path:
    """The pipeline in diffusers' layout, in float16."""
    folder = Path(cfg.out) / "mini_sd"
    shutil.rmtree(folder, ignore_errors=True)
    for name, net in {"vae": vae, **dict(diffusion.net.items())}.items():
        net.half().save_pretrained(folder / name)
    shutil.copytree(Path(cfg.data) / "tokenizer", folder / "tokenizer")
    own = {"model_max_length": tokenizer.model_max_length, "pad_token": tokenizer.pad_token}
    pipeline = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    scheduler = {**cfg.network.scheduler, "clip_sample": False, "set_alpha_to_one": False}
    scheduler |= {"_class_name": "DDIMScheduler", "steps_offset": 1}
    for file, value in {
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", **own},
        "model_index.json": {"_class_name": "StableDiffusionPipeline", **pipeline},
        "scheduler/scheduler_config.json": scheduler,
    }.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_text(folder / file, json.dumps(value, indent=2) + "\n")
    return folder


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1)
def main(config: str, overrides: tuple[str, ...]) -> None:
    cfg: Any = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
    out, data = Path(cfg.out), Path(cfg.data)
    out.mkdir(parents=True, exist_ok=True)
    images, captions = read_images(data / "train.npz")
    autoencoder, (vae, z) = train_autoencoder(cfg, images)
    if cfg.stop == "autoencoder":
        return
    longest = cfg.network.text_encoder.max_position_embeddings
    tokenizer = tokenizer_of(data / "tokenizer", longest)
    diffusion = train_diffusion(cfg, z, captions, tokenizer)
    record = record_of("train_mini_sd.py", cfg, config, overrides)
    for stage in (autoencoder, diffusion):
        counts = {name: parameter_count(net) for name, net in stage.net.items()}
        record[stage.file.stem] = {"parameters": counts, **stage.record()}
    folder = write(cfg, vae, diffusion, tokenizer)
    write_text(out / "mini_sd.json", json.dumps({"training": record}, indent=1) + "\n")
    print(f"wrote {folder} and {out / 'mini_sd.json'}")


if __name__ == "__main__":
    main()
