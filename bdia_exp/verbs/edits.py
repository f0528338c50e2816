"""`edits`: the same images edited by several methods, on one sheet (BDIA's Figures 4 and 6)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bdia_exp.console import positive, say
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked, Compose, Overrides, Phrase, folder_of
from bdia_exp.jobs.coefficients import bare
from bdia_exp.jobs.settings import OWN
from bdia_exp.overrides import entries, key_of, quoted, split
from bdia_exp.report import figures
from bdia_exp.report.markdown import markdown_table
from bdia_exp.report.statistics import share_interval
from bdia_exp.samplers.core import Grid
from bdia_exp.samplers.cost import MOST, affordable, evaluations
from bdia_exp.samplers.schedules import Schedule, linear_vp
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import contact_sheet
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb
from bdia_exp.verbs.edit import edit


@dataclass(frozen=True, kw_only=True)
class EditComparison(Asked):
    """Images, an edit, and the methods that make it."""

    images: str
    limit: int | None
    class_: int | None
    prompt: Phrase | None
    to: int | Phrase
    methods: list | str
    settings: Overrides | None
    steps: int
    nfe: int | None
    strength: float
    guidance: float | None
    device: str
    out: str | None

    def check(self) -> None:
        super().check()
        positive("steps", self.steps, MOST)
        positive("nfe", self.nfe, MOST)
        positive("limit", self.limit)


SHARED = ("images", "limit", "class", "prompt", "to", "strength", "guidance", "device")
"""The keys that are passed unchanged to every run of `edit`."""


def edits(asked: EditComparison, compose: Compose) -> Record:
    """Runs `edit` for every method with the same number of steps, or at equal `nfe`.

    Then it draws the sheet. Complete runs are not run again. Returns the records by method.
    """
    plain = asked.plain()
    common = [f"{key}={_as_word(plain[key])}" for key in SHARED if plain[key] is not None]
    more = split("settings", asked.settings)
    settled = {*SHARED, "nfe", "out", "sampler"}
    if both := sorted(settled & {key_of(word) for word in more}):
        raise UserError(f"settings: {both[0]}= is a key of edits or of its methods: give it there")
    chosen = entries("methods", asked.methods, "sampler", within=("grid",))
    plan = {label: [*common, *more, *how] for label, how in chosen.items()}
    root = folder_of(asked.out, f"edits-{records.digest(plan)}")
    made: Record = {}
    for label, words in plan.items():
        first = compose(words)
        # No cost depends on the schedule, but a diffusion's grid needs its own.
        schedule = linear_vp() if first.diffusion == OWN else first.load("meta").schedule
        sampler, grid = bare(first.sampler), partial(_grid, first.grid.make, schedule)
        if asked.nfe:
            _, nfe = affordable(sampler, grid, asked.nfe)
        else:
            nfe = evaluations(sampler, grid(asked.steps))
        folder = root / re.sub(r"[^\w.=-]+", "_", label, flags=re.ASCII)
        say(f"-- {label}")
        made[label] = edit(compose([*words, f"nfe={nfe}", f"out={quoted(folder)}"]))
    _draw(made, root, asked.images)
    return made


def _grid(make: Callable[..., Grid], schedule: Schedule, steps: int) -> Grid:
    return make(steps, schedule)


def _draw(made: Record, root: Path, images: str) -> None:
    strips: dict[str, Path | Image.Image] = {}
    rows = []
    classified = all("classified_as_to" in record for record in made.values())
    for label, record in made.items():
        found = ImageSet(record["config"]["out"]).read(range(record["images"]))
        if not strips:
            channels, height, width = found.shape[1:]
            source = ImageSet(images, fit=(channels, height, width))
            strips["input"] = contact_sheet(source.read(range(len(found))), len(found))
        spent = record["nfe"] + record["nfe_back"]
        strips[f"{label}: {spent} evaluations"] = contact_sheet(found, len(found))
        own = record.get("inversion_error", record["pixel_error"])
        rows.append(
            [
                label,
                f"{own['rms']:.3f}",
                f"{record['pixel_error']['rms']:.3f}",
                f"{record['edit_distance']['rms']:.1f}",
                f"{record['noise']['rms']:.3f} ({record['noise']['expected_rms']:.3f})",
                f"{record['nfe']} + {record['nfe_back']}",
                *([_seen(record)] if classified else []),
            ]
        )
    figures.side_by_side(strips, root / "sheet.png")
    heads = ["method", "inversion", "reconstruction", "edit", "noise", "evaluations"]
    heads += ["seen"] * classified
    config: dict[str, Any] = next(iter(made.values()))["config"]
    what = f"from {config['prompt']!r} " if config["prompt"] is not None else ""
    lines = [
        f"# Edits {what}to {config['to']!r}",
        "![Edits](sheet.png)",
        "RMS differences of pixels, which are 0 to 255. Inversion: error of the round trip alone; "
        "reconstruction: from the input, with the autoencoder's error; edit: from the input. "
        "Noise: RMS of the inverted images, in brackets that of images with random noise. "
        "Evaluations: to noise + back."
        + " Seen: share of the edits that the classifier sees as the new class, with its 95 % "
        "interval." * classified,
        markdown_table(heads, rows),
    ]
    write_text(root / "edits.md", "\n\n".join(lines) + "\n")
    records.save(root / "edits.json", made)
    say(f"{markdown_table(heads, rows)}\nwritten to {root}: edits.md, edits.json, sheet.png")


def _seen(record: Record) -> str:
    low, high = share_interval(
        round(record["classified_as_to"] * record["images"]), record["images"]
    )
    return f"{record['classified_as_to']:.0%} ({low:.0%} to {high:.0%})".replace("%", " %")


def _as_word(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else quoted(value)


VERB = Verb(edits, EditComparison, composes="edit")
