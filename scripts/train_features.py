#!/usr/bin/env python3
"""Trains the classifier whose features FID uses, and measures its reference statistics.

    python scripts/train_features.py --config configs/training/fashion_features.yaml
    python scripts/train_features.py --config configs/training/fashion_features.yaml device=cuda

Arguments after the option override the configuration (`epochs=1 out=runs/try`). It writes to `out`

    fashion_features.safetensors, .json    the network, and the record of its training
    fashion_reference.npz                  mean and covariance of the training images' features

and prints the FID of the test images against that reference: the floor that a perfect generator
would reach with as many images.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdia_exp.metrics.classifier import Classifier
from bdia_exp.metrics.features import ClassifierFeatures, label_accuracy
from bdia_exp.metrics.frechet import frechet_distance
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.sums import FeatureMoments
from bdia_exp.store.files import atomic, write_text


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, 32, 32] and labels int64 [N]."""
    data = np.load(path)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(data["labels"]).long()


def shifted(images: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image [B, C, H, W] rolled by up to `most` pixels each way; only black wraps around."""
    B, C, H, W = images.shape
    dy, dx = torch.randint(-most, most + 1, (2, B, 1, 1, 1), generator=rng)
    rows, columns = torch.arange(H).view(H, 1), torch.arange(W)
    b, c = torch.arange(B).view(B, 1, 1, 1), torch.arange(C).view(C, 1, 1)
    return images[b, c, (rows + dy) % H, (columns + dx) % W]


def train(net: Classifier, images: Tensor, labels: Tensor, cfg) -> list[float]:
    """Trains `net` in place; returns the mean loss of each epoch."""
    device = next(net.parameters()).device
    rng = torch.Generator().manual_seed(cfg.seed)
    opt = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    steps = len(images) // cfg.batch
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        opt, cfg.lr, total_steps=cfg.epochs * steps, pct_start=0.1
    )
    losses = []
    for epoch in range(cfg.epochs):
        net.train()
        total, began = 0.0, time.time()
        for pick in torch.randperm(len(images), generator=rng)[: steps * cfg.batch].split(
            cfg.batch
        ):
            x = shifted(images[pick], cfg.max_shift, rng).to(device)
            with torch.autocast(device.type, getattr(torch, cfg.body_dtype)):
                logits = net(x)[1]
            loss = cross_entropy(logits.float(), labels[pick].to(device))
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            cycle.step()
            total += loss.item()
        losses.append(round(total / steps, 5))
        print(f"epoch {epoch + 1}  loss {losses[-1]:.4f}  {time.time() - began:.0f} s", flush=True)
    return losses


def measure(
    extractor: ClassifierFeatures, images: Tensor, labels: Tensor, classes: int
) -> tuple[Statistics, float]:
    """The statistics of the images' features, and the accuracy of the classifier on them."""
    moments, accuracy = FeatureMoments(extractor.dim), label_accuracy(classes)
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        features, logits = extractor(x)
        moments.update(features)
        accuracy.update(logits.cpu(), y)
    return moments.compute(), accuracy.compute().item()


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1)
def main(config: str, overrides: tuple[str, ...]) -> None:
    cfg = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    out, data = Path(cfg.out), Path(cfg.data)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = read(data / "train.npz")

    net = Classifier(**OmegaConf.to_container(cfg.network))  # type: ignore[arg-type]
    net.to(cfg.device, memory_format=torch.channels_last)
    began = time.time()
    losses = train(net, images, labels, cfg)
    weights = {name: value.contiguous().cpu() for name, value in net.state_dict().items()}
    with atomic(out / "fashion_features.safetensors") as part:
        save_file(weights, part)
    record = {
        "network": OmegaConf.to_container(cfg.network),
        "size": images.shape[-1],
        "training": {
            "command": " ".join(["python scripts/train_features.py --config", config, *overrides]),
            "config": OmegaConf.to_container(cfg),
            "parameters": sum(p.numel() for p in net.parameters()),
            "seconds": round(time.time() - began),
            "torch": torch.__version__,
            "loss": losses,
        },
    }
    json_file = out / "fashion_features.json"
    write_text(json_file, json.dumps(record, indent=1) + "\n")

    extractor = ClassifierFeatures(out / "fashion_features", cfg.device)
    reference, train_accuracy = measure(extractor, images, labels, cfg.network.classes)
    source = {
        "features": extractor.name,
        "sha256": extractor.sha256,
        "images": str(data / "train.npz"),
    }
    replace(reference, meta=source).save(out / "fashion_reference.npz")
    test, test_accuracy = measure(extractor, *read(data / "test.npz"), cfg.network.classes)
    measured = {
        "sha256": extractor.sha256,
        "train_images": reference.count,
        "train_accuracy": round(train_accuracy, 5),
        "test_images": test.count,
        "test_accuracy": round(test_accuracy, 5),
        "floor_fid": float(f"{frechet_distance(test, reference):.6g}"),
    }
    write_text(json_file, json.dumps({**record, "measured": measured}, indent=1) + "\n")
    for key, value in measured.items():
        print(f"{key} {value}")


if __name__ == "__main__":
    main()
