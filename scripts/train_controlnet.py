#!/usr/bin/env python3
"""Trains `mini_controlnet`: it makes the U-Net of `mini_sd` follow the edges of a picture.

It starts as a copy of the U-Net's first half, whose outputs begin at zero. The edges are Canny's
of the training images. Text encoder, U-Net and autoencoder are frozen.

    python scripts/train_controlnet.py --config configs/training/mini_controlnet.yaml device=cuda

Arguments after the options override the configuration (`controlnet.kimg=800`). A stopped run, when
started again, continues from its last save. It writes `mini_controlnet/`, in diffusers' layout and
float16, `mini_controlnet.json`, the record, and `controlnet.csv`, a line for each save.
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
)
from omegaconf import OmegaConf
from torch import Tensor

from bdia_exp.extras import require
from bdia_exp.models import parameter_count
from bdia_exp.models.edges import canny
from bdia_exp.models.stable_diffusion import StableDiffusion, load
from bdia_exp.store.files import write_text


def train(cfg: Any, model: StableDiffusion, images: Tensor, captions: np.ndarray) -> Stage:
    """Trains on images uint8 [N, 3, H, W] and their captions, texts [N, K]."""
    torch.manual_seed(cfg.seed)
    fresh = require("diffusers").ControlNetModel.from_unet(
        model.parts["unet"], conditioning_embedding_out_channels=tuple(cfg.embedding)
    )
    stage = Stage("controlnet", {"controlnet": fresh.train().requires_grad_(True)}, cfg)
    control: Any = stage.net["controlnet"]
    own, unet = cfg.controlnet, model.parts["unet"]
    with torch.no_grad():
        z = latents_of(model.parts["vae"], images) * model.scaling
        edges = torch.cat([canny(part)[:, :1] for part in images.split(1000)])
    texts = Captions(captions, model.tokenizer)
    abar = torch.tensor(model.schedule.abar, dtype=torch.float32, device=cfg.device)

    def loss_of(rng: torch.Generator) -> Tensor:
        pick, tokens = texts.draw(rng, own.batch, own.empty)
        with torch.no_grad():
            states = model.parts["text_encoder"](tokens.to(cfg.device)).last_hidden_state
        shown = (edges[pick].to(cfg.device) / 255).expand(-1, 3, -1, -1)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            down, middle = control(x, t, states, shown, return_dict=False)
            more = {"down_block_additional_residuals": down}
            return unet(x, t, states, mid_block_additional_residual=middle, **more).sample

        return diffusion_loss(predict, z[pick].to(cfg.device), rng, abar, own.snr)

    stage.train(loss_of)
    return stage


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1)
def main(config: str, overrides: tuple[str, ...]) -> None:
    cfg: Any = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    model = load(cfg.base, device=cfg.device)
    stage = train(cfg, model, *read_images(Path(cfg.data) / "train.npz"))
    folder = out / "mini_controlnet"
    shutil.rmtree(folder, ignore_errors=True)
    net: Any = stage.net["controlnet"]
    net.half().save_pretrained(folder)
    record = {
        **record_of("train_controlnet.py", cfg, config, overrides),
        "base": model.provenance,
        "parameters": parameter_count(net),
        **stage.record(),
    }
    write_text(out / "mini_controlnet.json", json.dumps({"training": record}, indent=1) + "\n")
    print(f"wrote {folder} and {out / 'mini_controlnet.json'}")


if __name__ == "__main__":
    main()
