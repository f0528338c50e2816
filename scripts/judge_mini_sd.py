#!/usr/bin/env python3
"""Judges the images of `mini_sd`: does a prompt get its class and its colour? And the FID.

    bdia-exp sample model=mini_sd sampler=ddim nfe=50 guidance=4 prompts_seed=null images=1000 \\
        save=zip out=runs/mini_sd/ddim-50
    python scripts/judge_mini_sd.py runs/mini_sd/ddim-50 --data data/fashion_colour

The bundled classifier judges the class, from the largest channel; the colour is the tint nearest
to the image's mean colour. The FID is in the classifier's features. Beside them are the same
numbers of the test images of the prompts, which are the floor of the FID, and of these images
after the autoencoder alone, with its PSNR. Writes judged.json and judged.png, an image of each
class and colour, to --out (the run's folder).
"""

import csv
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdia_exp.metrics.colours import TINTS, colour_of
from bdia_exp.metrics.features import garments
from bdia_exp.metrics.frechet import frechet_distance
from bdia_exp.metrics.garments import NAMES
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.sums import FeatureMoments
from bdia_exp.models import stable_diffusion
from bdia_exp.report.figures import side_by_side
from bdia_exp.sources.checkpoints import BUNDLED
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.pictures import to_pil

COLOURS = [*TINTS]
CLASSES = [names[0] for names in NAMES]
PROMPTS = BUNDLED / "fashion_captions.csv"


def asked(run: Path, prompts: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The test image, class and colour of each prompt of a run, int64 [N] each."""
    with open(prompts, encoding="utf-8", newline="") as file:
        known = {row["image"]: row for row in csv.DictReader(file)}
    with open(run / "prompts.csv", encoding="utf-8", newline="") as file:
        rows = [known[row["image"]] for row in csv.DictReader(file)]
    found = [[int(r["image"]), int(r["class"]), COLOURS.index(r["colour"])] for r in rows]
    return torch.tensor(found).unbind(1)


def judged(images: Tensor, labels: Tensor, colours: Tensor) -> dict[str, Any]:
    """The shares of images uint8 [N, 3, 32, 32] with their class, colour and both, and the FID."""
    extractor = garments()
    features, logits = extractor(images)
    assert logits is not None
    seen, tint = logits.argmax(1) == labels, colour_of(images) == colours
    moments = FeatureMoments(extractor.dim)
    moments.update(features)
    reference = Statistics.load(BUNDLED / "fashion_reference.npz")
    return {
        "images": len(images),
        "fid": round(frechet_distance(moments.compute(), reference), 4),
        "class": _share(seen),
        "colour": _share(tint),
        "both": _share(seen & tint),
        "by_class": {name: _share(seen[labels == k]) for k, name in enumerate(CLASSES)},
        "by_colour": {name: _share(tint[colours == k]) for k, name in enumerate(COLOURS)},
    }


def _share(right: Tensor) -> float:
    return round(right.double().mean().item(), 4)


def decoded(model: stable_diffusion.StableDiffusion, images: Tensor) -> Tensor:
    """Images after the autoencoder: encoded and decoded."""
    return torch.cat([model.decode(model.encode(one)) for one in images.split(1)])


def psnr(images: Tensor, others: Tensor) -> float:
    """The mean over images of 10 log10(255² / squared error), in dB."""
    error = ((images.double() - others.double()) ** 2).mean((1, 2, 3)).clamp(min=1e-3)
    return round((10 * torch.log10(255**2 / error)).mean().item(), 2)


def sheet(images: Tensor, labels: Tensor, colours: Tensor, path: Path, scale: int = 2) -> None:
    """The first image of each class (rows) and colour (columns); grey where there is none."""
    strips: dict[str, Path | Image.Image] = {}
    for k, name in enumerate(CLASSES):
        cells = []
        for c in range(len(COLOURS)):
            found = torch.nonzero((labels == k) & (colours == c))
            cells.append(images[found[0, 0]] if len(found) else torch.full_like(images[0], 128))
        strip = to_pil(torch.cat(cells, 2))
        size = (strip.width * scale, strip.height * scale)
        strips[name] = strip.resize(size, Image.Resampling.NEAREST)
    side_by_side(strips, path)


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", default="data/fashion_colour", show_default=True, type=Path)
@click.option("--model", default="bundled:mini_sd", show_default=True, help="of the autoencoder")
@click.option("--prompts", default=PROMPTS, show_default=True, type=Path)
@click.option("--out", type=Path)
def main(run: Path, data: Path, model: str, prompts: Path, out: Path | None) -> None:
    out = out or run
    out.mkdir(parents=True, exist_ok=True)
    places, labels, colours = asked(run, prompts)
    images = torch.stack([*ImageSet(run).read(range(len(places)))])
    test = torch.from_numpy(np.load(data / "test.npz")["images"]).permute(0, 3, 1, 2)[places]
    through = decoded(stable_diffusion.load(model), test)
    found = {
        "generated": judged(images, labels, colours),
        "test images": judged(test, labels, colours),
        "autoencoder": {**judged(through, labels, colours), "psnr": psnr(test, through)},
    }
    (out / "judged.json").write_text(json.dumps(found, indent=1) + "\n")
    sheet(images, labels, colours, out / "judged.png")
    for name, numbers in found.items():
        click.echo(f"{name}: " + ", ".join(f"{k} {v}" for k, v in numbers.items() if k[:2] != "by"))
    for key in ("by_class", "by_colour"):
        shares = found["generated"][key].items()
        click.echo(", ".join(f"{name} {share:.2f}" for name, share in shares))


if __name__ == "__main__":
    main()
