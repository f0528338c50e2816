#!/usr/bin/env python3
"""The race of samplers at few evaluations, and the race of the reversible ones.

    bdia-exp reproduce race limit=300 out=results/race
    python scripts/race.py results/race

The first command measures FIDs. The script measures distances from the fine solution of the same
noises, held out from every fit; then round trips, the noise after inversion and the sampling error
of the methods that can be inverted, at equal NFE. It writes each result to cells/, then race.json,
race.md and race.png. Run again, it measures only what cells/ lacks.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from bdia_exp.cli.configs import settings
from bdia_exp.cli.files import CONFIGS
from bdia_exp.console import progress, say
from bdia_exp.errors import UserError
from bdia_exp.jobs.coefficients import USUAL, bare, file_of
from bdia_exp.jobs.fits import fitting
from bdia_exp.jobs.fits.noises import Batch
from bdia_exp.jobs.identity import plainly, sampler_identity
from bdia_exp.jobs.problems import last
from bdia_exp.jobs.sampling import Job, levels_of, sampler_on
from bdia_exp.jobs.settings import Sampling
from bdia_exp.models import Model
from bdia_exp.report import curves
from bdia_exp.report.markdown import markdown_table, short
from bdia_exp.report.statistics import difference, verdict
from bdia_exp.samplers import inversion
from bdia_exp.samplers.cost import affordable
from bdia_exp.samplers.fitted import rms
from bdia_exp.samplers.targets import FINE, fine_end, fine_levels
from bdia_exp.store import records
from bdia_exp.store.cache import Cells
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record
from bdia_exp.verbs.exactness import from_image, from_noise

MODEL, DEVICE = "model=fashion_mini", "cpu"
SEEDS = range(3_500_000_000, 3_500_000_064)
"""The noises of the race: none is fitted."""
IMAGES = SEEDS[:16]
"""Those of the reversible race."""
NFES = (5, 7, 9, 11, 13, 19, 35)
REVERSIBLE = {
    "DDIM": ["sampler=ddim"],
    "EDICT p=0.93": ["sampler=edict"],
    "BDIA γ=1": ["sampler=bdia_ddim"],
    "BDIA γ=0.96": ["sampler=bdia_ddim", "sampler.gamma=0.96"],
    "BDIA fitted γ": ["sampler=bdia_ddim", "sampler.gamma=auto"],
    "O-BELM": ["sampler=bdia_ddim", "sampler.gamma=obelm"],
    "CBDIA 0, 1": ["sampler=cbdia", "sampler.gamma1=0", "sampler.gamma2=1"],
    "CBDIA 0.04, 0.96": ["sampler=cbdia", "sampler.gamma1=0.04", "sampler.gamma2=0.96"],
    "Rex Euler": ["sampler=rex"],
    "Rex Euler, data": ["sampler=rex", "sampler.predicts=data"],
    "Rex midpoint": ["sampler=rex", "sampler.tableau=midpoint"],
    "Rex rk4": ["sampler=rex", "sampler.tableau=rk4"],
}
PAIRS = (
    ("BDIA-DDIM fitted γ", "O-BELM"),
    ("BDIA-DDIM fitted γ", "BDIA-DDIM γ=0.5"),
    ("BDIA-DDIM fitted γ, contrast kept", "BDIA-DDIM fitted γ"),
    ("fitted AB, contrast kept", "fitted AB"),
    ("IIA-EDM", "EDM"),
    ("IIA-DDIM", "DDIM"),
)
"""Rows of the experiment that are compared with each other."""
SPENT = (20, 40, 100)
"""Evaluations to noise; of Rex the nearest number below that is possible."""
GRIDS = {"karras": "EDM's levels (karras)", "quad": "VP levels (quad)"}


class Prepared:
    """A model with its noises, and the end of one fine solution for each range of levels."""

    def __init__(self) -> None:
        asked = settings("sample", [MODEL])
        self.model: Model = asked.model.make(**asked.how(DEVICE))
        self.ends: dict[tuple, Tensor] = {}

    def nearest(self, words: Iterable[str], nfe: int) -> Sampling:
        """The settings of a run with as many evaluations as are possible, at most `nfe`."""
        asked = asked_for(words, nfe)
        grid = partial(asked.grid.make, schedule=self.model.schedule)
        return replace(asked, nfe=affordable(bare(asked.sampler), grid, nfe)[1])

    def job(self, asked: Sampling) -> Job:
        """The job of a run, without loading the model again."""
        fitting.ensure(asked, DEVICE, 64)
        grid = levels_of(asked, self.model)
        return Job(self.model, sampler_on(asked, grid), grid, None, None, "cpu")

    def fine(self, job: Job, seeds: range) -> tuple[Batch, Tensor]:
        """The noises of these seeds and the end of their fine solution."""
        batch = Batch.of(job, seeds, 64)
        levels = fine_levels(job.grid, self.model.schedule)
        key = (seeds, levels)
        if key not in self.ends:
            self.ends[key] = fine_end(batch, batch.z, levels)
        return batch, self.ends[key]

    def identity(self, asked: Sampling, seeds: range) -> Record:
        """All that decides what is measured of a run on these noises."""
        named = file_of(asked.sampler.config)
        return {
            "model": asked.model.config,
            "checkpoint_sha256": self.model.provenance["sha256"],
            **asked.rounding,
            "sampler": sampler_identity(asked.sampler.config),
            "coefficients": named and [USUAL, *named],
            "grid": asked.grid.config,
            "nfe": asked.nfe,
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "fine": FINE,
        }


def asked_for(words: Iterable[str], nfe: int) -> Sampling:
    """The settings of a run of the race's model."""
    return settings("sample", [MODEL, *words, f"nfe={nfe}"])


def sampling(cells: Cells, rows: dict[str, list[str]], nfes: Sequence[int]) -> list[Record]:
    """The distances of every sampler's end states from the fine solution."""
    prepared, kept, found = Prepared(), {"distances": (dict,)}, []
    with progress(len(rows) * len(nfes), "cell") as bar:
        for (name, words), nfe in product(rows.items(), nfes):
            asked = asked_for([*words, "grid=karras"], nfe)
            run = partial(distances, prepared, asked)
            identity = prepared.identity(asked, SEEDS)
            cell = cells.get(f"distance-{name}-{nfe}", identity, kept, run, DEVICE)
            found.append({"row": name, "nfe": nfe, **cell["distances"]})
            bar.update()
    return found


def distances(prepared: Prepared, asked: Sampling) -> Record:
    """The RMS distance of one run's end states, and the median of those of its images."""
    job = prepared.job(asked)
    batch, end = prepared.fine(job, SEEDS)
    wrong = last(job.sampler(batch, batch.z, job.grid)) - end
    each = wrong.flatten(1).square().mean(1).sqrt()
    return {"distances": {"rms": rms(wrong), "median": median(each.tolist())}}


def reversible(cells: Cells, prepared: Prepared, grid: str, nfe: int) -> list[Record]:
    """Round trips at about `nfe` evaluations to noise, of every method that can be inverted.

    One that cannot be undone on this grid is named and left out.
    """
    kept, found = {"errors": (dict,)}, []
    for name, words in REVERSIBLE.items():
        asked = prepared.nearest([*words, f"grid={grid}"], nfe)
        trip = partial(round_trips, prepared, asked)
        try:
            identity = prepared.identity(asked, IMAGES)
            made = cells.get(f"trip-{name}-{grid}-{nfe}", identity, kept, trip, DEVICE)
        except UserError as error:
            say(f"{grid} {nfe} {name} is left out: {error}")
            continue
        cell = {"row": name, "grid": grid, "nfe": asked.nfe, "asked": nfe, **made["errors"]}
        found.append(cell)
        say(f"{grid} {nfe} {name}: {json.dumps(cell)}")
    return found


def round_trips(prepared: Prepared, asked: Sampling) -> Record:
    """The errors of one method. Raises UserError if it cannot be undone on its grid."""
    job = prepared.job(asked)
    way = partial(inversion.of, job.sampler)
    found: Record = {"growth": way().growth(job.grid)}
    batch, end = prepared.fine(job, IMAGES)
    x = job.model.encode(job.model.decode(end))
    found["error"] = rms(last(job.sampler(batch, batch.z, job.grid)) - end)
    for state in ("float64", "float32"):
        dtype = inversion.STATES[state]
        first, kept, back = from_image(way(state=state), batch, x.to(dtype), job.grid)
        found[f"image_{state}"] = rms(back.double() - first.double()) / rms(first)
        found.setdefault("noise", rms(kept["z"]) / rms(batch.z))
        first, _, back = from_noise(way(state=state), batch, batch.z.to(dtype), job.grid)
        found[f"noise_{state}"] = rms(back.double() - first.double()) / rms(first)
    return {"errors": found}


def envelope(cells: list[Record]) -> dict[int, str]:
    """The row with the smallest RMS distance at each NFE."""
    best: dict[int, Record] = {}
    for cell in cells:
        if cell["nfe"] not in best or cell["rms"] < best[cell["nfe"]]["rms"]:
            best[cell["nfe"]] = cell
    return {nfe: cell["row"] for nfe, cell in sorted(best.items())}


def markdown(race: Record) -> str:
    cells, nfes = race["cells"], sorted({cell["nfe"] for cell in race["cells"]})
    at = {(cell["row"], cell["nfe"]): cell for cell in cells}
    rows = [*dict.fromkeys(cell["row"] for cell in cells)]
    heads = ["sampler", *(f"NFE {nfe}" for nfe in nfes)]
    parts = ["# The race", f"fashion_mini on EDM's levels; {len(SEEDS)} noises held out from fits."]
    for what, title in (("rms", "RMS distance"), ("median", "median distance of an image")):
        parts += [
            f"## {title} from the fine solution of the same noise",
            markdown_table(
                heads, [[row, *(f"{at[row, nfe][what]:.4f}" for nfe in nfes)] for row in rows]
            ),
        ]
    best = "; ".join(f"NFE {nfe}: {row}" for nfe, row in envelope(cells).items())
    parts += [f"Smallest RMS: {best}.", "![Distances and FID](race.png)"]
    return "\n\n".join([*parts, *_reversible(race["reversible"])]) + "\n"


def paired(table: Record) -> str:
    """The differences in FID of `PAIRS`, with the same seeds, and what they show."""
    at = {(cell["row"], cell["column"]): cell for cell in table["cells"]}
    rows = []
    for one, other in PAIRS:
        found = []
        for column in table["columns"]:
            if not {(one, column), (other, column)} <= at.keys():
                found.append("–")
                continue
            a, b = at[one, column], at[other, column]
            sides = (a["fid"], *a["fid_without_block"], b["fid"], *b["fid_without_block"])
            between = difference(*sides)
            found.append(f"{between}, {verdict(between)}")
        rows.append([f"{one} − {other}", *found])
    heads = ["FID, NFE", *map(str, table["columns"])]
    return f"\n# Paired differences in FID\n\n{markdown_table(heads, rows)}\n"


def _reversible(cells: list[Record]) -> list[str]:
    parts = [
        "# The reversible race",
        f"{len(IMAGES)} images, states in float64 and float32, the network in float32. Errors are "
        "RMS, relative to the RMS of the first state; the sampling error is the RMS distance from "
        "the fine solution. Noise: RMS of the inverted images over that of the noise they came "
        "from; 1 is right. Growth: Π 1/|γ_i|, or as much for couplings.",
    ]
    heads = ["method", "NFE", "sampling error", "noise", "growth"]
    trips = [*product(("image", "noise"), ("float64", "float32"))]
    heads += [f"{way}, {state}" for way, state in trips]
    for grid, title in GRIDS.items():
        for spent in sorted({cell["asked"] for cell in cells if cell["grid"] == grid}):
            rows = [
                [
                    cell["row"],
                    str(cell["nfe"]),
                    f"{cell['error']:.4f}",
                    f"{cell['noise']:.4g}",
                    short(cell["growth"]),
                    *(short(cell[f"{way}_{state}"]) for way, state in trips),
                ]
                for cell in cells
                if cell["grid"] == grid and cell["asked"] == spent
            ]
            parts += [f"## {title}, about {spent} evaluations", markdown_table(heads, rows)]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--nfes", type=int, nargs="+", default=NFES)
    root, nfes = (given := parser.parse_args()).root, given.nfes
    experiment: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "experiment/race.yaml"))
    (table,) = experiment["tables"]
    cells = Cells(root, plainly, "race")
    with torch.inference_mode():
        found = sampling(cells, table["rows"], nfes)
        both: list[Record] = []
        for grid, spent in product(GRIDS, SPENT):
            both += reversible(cells, Prepared(), grid, spent)
    race = {**cells.made, "device": cells.device, "cells": found, "reversible": both}
    records.save(root / "race.json", race)
    drawn = root / "tables.json"
    fids = json.loads(drawn.read_text(encoding="utf-8"))["tables"] if drawn.exists() else []
    write_text(root / "race.md", markdown(race) + "".join(map(paired, fids)))
    curves.race(found, fids, root / "race.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"Error: {error}") from None
