"""`edits`: the same images edited by several methods, on one sheet (BDIA's Figures 4 and 6)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bdia_exp.console import positive, say
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked, Compose, Overrides, Phrase, Source, folder_of
from bdia_exp.jobs.coefficients import bare
from bdia_exp.jobs.settings import OWN, Editing
from bdia_exp.overrides import entries, key_of, quoted, split
from bdia_exp.report import figures
from bdia_exp.report.markdown import markdown_table
from bdia_exp.report.statistics import share_interval
from bdia_exp.samplers import inversion
from bdia_exp.samplers.core import Grid
from bdia_exp.samplers.cost import MOST, affordable, evaluations
from bdia_exp.samplers.schedules import Schedule, linear_vp
from bdia_exp.sources import checkpoints
from bdia_exp.store import records
from bdia_exp.store.files import file_name, write_text
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
    pairs: Source | None
    to: int | Phrase | None
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


SHARED = ("images", "limit", "class", "prompt", "pairs", "to", "strength", "guidance", "device")
"""The keys that are passed unchanged to every run of `edit`."""


def edits(asked: EditComparison, compose: Compose) -> Record:
    """Runs `edit` for every method with the same number of steps, or at equal `nfe`.

    Then it draws the sheet. Complete runs are not run again. Returns the records by method.
    Raises UserError before the first run if a method has no inverse.
    """
    plain = asked.plain()
    common = [f"{key}={_as_word(plain[key])}" for key in SHARED if plain[key] is not None]
    more = split("settings", asked.settings)
    settled = {*SHARED, "nfe", "out", "sampler"}
    if both := sorted(settled & {key_of(word) for word in more}):
        raise UserError(f"settings: {both[0]}= is a key of edits or of its methods: give it there")
    chosen = entries("methods", asked.methods, "sampler", within=("grid",))
    plan = {}
    for label, how in chosen.items():
        words = [*common, *more, *how]
        method = compose(words)
        _require_inverse(method, label)
        plan[label] = [*words, f"nfe={_nfe(asked, method)}"]
    root = folder_of(asked.out, f"edits-{records.digest(plan)}")
    made: Record = {}
    folders: dict[str, Path] = {}
    for label, words in plan.items():
        folders[label] = root / file_name(label)
        say(f"-- {label}")
        made[label] = edit(compose([*words, f"out={quoted(folders[label])}"]))
    _draw(made, folders, root, asked.images)
    return made


def _require_inverse(method: Editing, label: str) -> None:
    try:
        inversion.of(bare(method.sampler))
    except UserError as error:
        raise UserError(f"methods: {label}: {error}") from None


def _nfe(asked: EditComparison, method: Editing) -> int:
    """The evaluations of a whole grid by a method."""
    # No cost depends on the schedule, but a diffusion's grid needs its own.
    schedule = linear_vp() if method.diffusion == OWN else method.load("meta").schedule
    sampler, grid = bare(method.sampler), partial(_grid, method.grid.make, schedule)
    if asked.nfe:
        _, nfe = affordable(sampler, grid, asked.nfe)
        return nfe
    return evaluations(sampler, grid(asked.steps))


def _grid(make: Callable[..., Grid], schedule: Schedule, steps: int) -> Grid:
    return make(steps, schedule)


def _draw(made: Record, folders: Mapping[str, Path], root: Path, images: str) -> None:
    """Writes the sheet, the table and the records, of runs that are in `folders` now."""
    strips: dict[str, Path | Image.Image] = {}
    rows = []
    for label, record in made.items():
        found = ImageSet(folders[label]).read(range(min(record["images"], SHOWN)))
        if not strips:
            channels, height, width = found.shape[1:]
            source = ImageSet(checkpoints.located(images), fit=(channels, height, width))
            strips["input"] = contact_sheet(source.read(range(len(found))), len(found))
        spent = record["nfe"] + record["nfe_back"]
        strips[f"{label}: {spent} evaluations"] = contact_sheet(found, len(found))
        rows.append({"method": label, **_numbers(record)})
    figures.side_by_side(strips, root / "sheet.png")
    heads = [*rows[0]]
    drawn = markdown_table(heads, [[*row.values()] for row in rows])
    first = next(iter(made.values()))
    config: dict[str, Any] = first["config"]
    what = f"from {config['prompt']!r} " if config["prompt"] is not None else ""
    what += f"to {config['to']!r}" if config["to"] is not None else f"by {config['pairs']}"
    lines = [
        f"# Edits {what}, {first['images']} images",
        "![Edits](sheet.png)",
        "\n".join(f"* {head}: {meaning}" for head, meaning in MEANING.items() if head in heads),
        drawn,
    ]
    write_text(root / "edits.md", "\n\n".join(lines) + "\n")
    records.save(root / "edits.json", made)
    say(f"{drawn}\nwritten to {root}: edits.md, edits.json, sheet.png")


SHOWN = 12
"""The most images of a method on the sheet."""
MEANING = {
    "inversion": "RMS error of the round trip alone, in pixels of 0 to 255",
    "reconstruction": "RMS difference from the input, with the autoencoder's error",
    "edit": "RMS difference of the edit from the input",
    "outside": "the same, where the input has no garment",
    "noise": "RMS of the inverted images, in brackets that of images with random noise",
    "evaluations": "to noise + back",
    "class as asked": "share of the edits that the classifier sees as the new class, with its 95 % "
    "interval",
    "colour as asked": "share of the edits whose mean colour is nearest to the new colour",
}
"""The columns of the table."""


def _numbers(record: Record) -> dict[str, str]:
    """The cells of a method, by their heads."""
    own = record["inversion_error" if "inversion_error" in record else "pixel_error"]
    noise = record["noise"]
    cells = {
        "inversion": f"{own['rms']:.3f}",
        "reconstruction": f"{record['pixel_error']['rms']:.3f}",
        "edit": f"{record['edit_distance']['rms']:.1f}",
    }
    if "change_outside" in record:
        cells["outside"] = f"{record['change_outside']:.1f}"
    cells["noise"] = f"{noise['rms']:.3f} ({noise['expected_rms']:.3f})"
    cells["evaluations"] = f"{record['nfe']} + {record['nfe_back']}"
    by_class = {"class": record["classified_as_to"]} if "classified_as_to" in record else {}
    for aspect, found in (by_class | record.get("as_asked", {})).items():
        judged = record.get("judged", {}).get(aspect, record["images"])
        low, high = share_interval(round(found * judged), judged)
        text = f"{found:.0%} ({low:.0%} to {high:.0%})"
        cells[f"{aspect} as asked"] = text.replace("%", " %")
    return cells


def _as_word(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else quoted(value)


VERB = Verb(edits, EditComparison, composes="edit")
