"""How well images follow the edges they were made from, and a sheet of them (BDIA's Figure 5).

    bdia-exp reproduce controlnet-mini overrides=save=folder out=results/controlnet
    python scripts/controlnet.py results/controlnet

Writes edges.json, edges.md and sheet.png. The edges of an image are computed as those of its
picture were. Precision is the share of the image's edge pixels within one pixel of an edge of the
picture, recall the share of the picture's within one pixel of the image's; F1 is their harmonic
mean, of all images together. Beside it is the RMS difference from the picture, of 255. Intervals
are 95 %, from a bootstrap over images.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from bdia_exp.console import say
from bdia_exp.models.edges import canny
from bdia_exp.report import figures
from bdia_exp.report.markdown import markdown_table
from bdia_exp.sources.checkpoints import locate
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import contact_sheet

PICTURES, SHOWN, DRAWS = "bundled:fashion_edits.zip", 12, 2000


def near(lines: Tensor) -> Tensor:
    """Where an edge is within one pixel; lines: bool [N, H, W]."""
    return max_pool2d(lines[:, None].float(), 3, 1, 1)[:, 0] > 0


def counts(made: Tensor, pictures: Tensor) -> Tensor:
    """Of each image: its edge pixels, those near the picture's; the picture's, those near its own.

    made, pictures: uint8 [N, 3, H, W]. Returns float64 [N, 4].
    """
    a, b = (canny(images)[:, 0] > 0 for images in (made, pictures))
    each = (a, a & near(b), b, b & near(a))
    return torch.stack([lines.sum((1, 2)).double() for lines in each], 1)


def f1(found: Tensor) -> Tensor:
    """F1 of sums of counts, [..., 4]."""
    own, right, theirs, met = found.unbind(-1)
    precision, recall = right / own.clamp(min=1), met / theirs.clamp(min=1)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def interval(draws: Tensor) -> list[float]:
    return torch.quantile(draws, torch.tensor([0.025, 0.975]).double()).tolist()


def measured(made: Tensor, pictures: Tensor) -> dict[str, object]:
    found = counts(made, pictures)
    square = (made.double() - pictures.double()).square().mean((1, 2, 3))
    rng = torch.Generator().manual_seed(0)
    picks = torch.randint(len(made), (DRAWS, len(made)), generator=rng)
    return {
        "images": len(made),
        "f1": float(f1(found.sum(0))),
        "f1_interval": interval(f1(found[picks].sum(1))),
        "rms": float(square.mean().sqrt()),
        "rms_interval": interval(square[picks].mean(1).sqrt()),
    }


def by_method(file: Path) -> tuple[str, int]:
    """The method and the timesteps of a cell's record."""
    _, _, cell = file.parent.name.partition("-")
    method, _, steps = cell.rpartition("-")
    return method.replace("_", " "), int(steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="that of `reproduce controlnet-mini`")
    folder = parser.parse_args().folder
    pictures = ImageSet(locate(PICTURES))
    runs = sorted(folder.glob("cells/*/record.json"), key=by_method)
    found, strips = {}, {}
    spread = torch.linspace(0, len(pictures) - 1, SHOWN).long().tolist()
    shown = pictures.read(spread)
    strips["picture"] = contact_sheet(shown, SHOWN)
    strips["edges"] = contact_sheet(canny(shown), SHOWN)
    for file in runs:
        images = ImageSet(file.parent)
        name = "{} at {}".format(*by_method(file))
        rows = range(len(images))
        found[name] = measured(images.read(rows), pictures.read(rows))
        strips[name] = contact_sheet(images.read(spread), SHOWN)
    doubled = {
        name: strip.resize((2 * strip.width, 2 * strip.height), Image.Resampling.NEAREST)
        for name, strip in strips.items()
    }
    figures.side_by_side(doubled, folder / "sheet.png")
    rows = [[name, *(_text(one, key) for key in ("f1", "rms"))] for name, one in found.items()]
    drawn = markdown_table(["run", "edges followed, F1", "RMS from the picture"], rows)
    write_text(folder / "edges.md", drawn + "\n")
    records.save(folder / "edges.json", found)
    say(drawn)


def _text(one: dict, key: str) -> str:
    low, high = one[f"{key}_interval"]
    return f"{one[key]:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
