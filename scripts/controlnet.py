"""How well images follow the edges they were made from, and a sheet of them (BDIA's Figure 5).

    bdia-exp reproduce controlnet-mini overrides=save=folder out=results/controlnet
    python scripts/controlnet.py results/controlnet

Writes edges.json, edges.md and sheet.png. The edges of an image are computed as those of its
picture were. Precision is the share of the image's edge pixels within one pixel of an edge of the
picture, recall the share of the picture's within one pixel of the image's; F1 is their harmonic
mean, of all images together. Beside it is the RMS difference from the picture, of 255. ± is half
of the 95 % interval.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from bdia_exp.console import say
from bdia_exp.metrics.frechet import BLOCKS
from bdia_exp.models.edges import canny
from bdia_exp.report import figures
from bdia_exp.report.markdown import markdown_table
from bdia_exp.report.statistics import interval
from bdia_exp.sources.checkpoints import locate
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import contact_sheet

PICTURES, SHOWN = "bundled:fashion_edits.zip", 12


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


def measured(made: Tensor, pictures: Tensor) -> dict[str, Any]:
    """F1 and RMS difference, each with half of its interval from blocks of images."""
    found = counts(made, pictures)
    square = (made.double() - pictures.double()).square().mean((1, 2, 3))
    block = torch.arange(len(made)) % BLOCKS
    parts = [block != k for k in block.unique()]
    f1s = interval(_f1(found), [_f1(found[part]) for part in parts])
    rms = interval(_rms(square), [_rms(square[part]) for part in parts])
    return {"images": len(made), "f1": asdict(f1s), "rms": asdict(rms)}


def _f1(found: Tensor) -> float:
    """F1 of counts [N, 4]."""
    own, right, theirs, met = found.sum(0).tolist()
    precision, recall = right / max(own, 1), met / max(theirs, 1)
    return 2 * precision * recall / (precision + recall) if right else 0.0


def _rms(square: Tensor) -> float:
    return float(square.mean().sqrt())


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
    rows = [[name, *(_text(one[key]) for key in ("f1", "rms"))] for name, one in found.items()]
    drawn = markdown_table(["run", "edges followed, F1", "RMS from the picture"], rows)
    write_text(folder / "edges.md", drawn + "\n")
    records.save(folder / "edges.json", found)
    say(drawn)


def _text(found: dict[str, float]) -> str:
    return f"{found['value']:.3g} ± {found['half_width']:.2g}"


if __name__ == "__main__":
    main()
