"""Experiments: the cells of an experiment's tables, and the runs that measure them.

A table has rows and columns of overrides. A cell is one number: one row with one column. It is
measured by one run of `sample`, or by several with different seeds: EDM's protocol uses three
ranges of 50,000 seeds and reports the smallest FID; the tables show the mean first.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from bdia_exp.console import positive
from bdia_exp.errors import KINDS, UserError
from bdia_exp.jobs.claims import known
from bdia_exp.jobs.identity import identity_of, plainly
from bdia_exp.jobs.references import same_score
from bdia_exp.jobs.settings import Sampling
from bdia_exp.overrides import key_of, listed, words_of
from bdia_exp.report.cells import lacking
from bdia_exp.seeds import MOST as MOST_SEEDS
from bdia_exp.store import records
from bdia_exp.store.files import file_name
from bdia_exp.store.records import Record

SETTLED = {"images", "seeds", "out", "score"}
"""The keys of `sample` that `reproduce` sets."""
MOST_RANGES = 1000
"""The largest number of seed ranges of a cell."""


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    table: str
    row: str
    column: str
    overrides: tuple[str, ...]
    root: Path

    @property
    def name(self) -> str:
        return f"{self.table}: {self.row} at {self.column}"

    def folder(self, start: int) -> Path:
        """The folder of the run whose first seed is `start`."""
        return self.root.with_name(f"{self.root.name}-from{start}") if start else self.root

    def records(self, starts: Iterable[int] | None = None) -> list[Record]:
        """The complete records of the runs with these first seeds; None: of all that are there.

        They are in the order of their seeds. Raises UserError for one that lacks what a table
        shows, and for one of another experiment than the first.
        """
        shown = self._starts() if starts is None else starts
        files = [self.folder(start) / "record.json" for start in shown]
        found = {file: record for file in files if (record := records.load(file))}
        whole = {file: record for file, record in found.items() if _scored(record)}
        for file, record in whole.items():
            if missing := lacking(record):
                raise UserError(
                    f"{file} is damaged (it has no {missing[0]}): remove that folder, and run the "
                    "same `reproduce` again"
                )
        _require_one_experiment({file.parent: record for file, record in whole.items()})
        return [*whole.values()]

    def _starts(self) -> list[int]:
        """The first seeds of all runs that may be there."""
        others = self.root.parent.glob(f"{self.root.name}-from*")
        found = [other.name.rpartition("-from")[2] for other in others]
        return sorted({0, *(int(start) for start in found if start.isdigit())})


def _require_one_experiment(runs: Mapping[Path, Record]) -> None:
    """Raises UserError if the identities of these runs differ in more than their seeds."""
    identities = {
        folder: {**plainly(record["identity"]), "seeds": None} for folder, record in runs.items()
    }
    for before, folder in pairwise(identities):
        records.require_same(
            folder,
            identities[folder],
            identities[before],
            f"a cell shows runs of one experiment, so remove that folder or {before}, and run the "
            "same `reproduce` again",
        )


def _scored(record: Record) -> bool:
    """Whether this is the record of a complete run with its score."""
    return bool(record.get("complete")) and {"score", "identity"} <= record.keys()


EXPERIMENT: dict[str, type] = {"name": str, "title": str, "images": int, "tables": list}
TABLE: dict[str, type] = {"name": str, "title": str, "axis": str, "rows": dict, "columns": dict}
"""The keys that an experiment and each of its tables must have, and the types of their values."""
OPTIONAL: dict[str, type] = {
    **{"common": list, "settings": list, "repeats": int, "report": str},
    **{"published": dict, "match": dict},
}
"""Other keys of an experiment or a table."""


def checked(experiment: Record) -> Record:
    """The experiment with labels that are text, and without keys that have no value.

    Raises UserError, naming the key, unless it is an experiment as in configs/experiment.
    """
    _require_keys("experiment", experiment, EXPERIMENT)
    positive("experiment.images", experiment["images"], MOST_SEEDS)
    words_of("experiment.settings", experiment.get("settings") or [])
    for place, table in enumerate(experiment["tables"]):
        where = f"experiment.tables.{place}"
        _require_keys(where, table, TABLE)
        words_of(where, [*(experiment.get("common") or []), *(table.get("common") or [])])
        for label, words in (*table["rows"].items(), *table["columns"].items()):
            words_of(f"{where}: {label}", words)
        _require_numbers(f"{where}.match", table.get("match"), table["columns"])
        published = table.get("published") or {}
        _require_labels(f"{where}.published", published, table["rows"])
        for row, numbers in published.items():
            _require_numbers(f"{where}.published.{row}", numbers, table["columns"])
    return cast(Record, _tidy(experiment))


def _tidy(node: Any) -> Any:
    """The same, where every key is text and has a value."""
    if isinstance(node, Mapping):
        return {str(key): _tidy(value) for key, value in node.items() if value is not None}
    return [_tidy(value) for value in node] if isinstance(node, list) else node


def _require_keys(where: str, node: Any, needed: dict[str, type]) -> None:
    if not isinstance(node, dict):
        raise UserError(f"{where} must have the keys {', '.join(needed)}")
    for key, kind in (OPTIONAL | needed).items():
        value = node.get(key)
        absent_is_fine = key not in needed and value is None
        if not absent_is_fine and type(value) is not kind:
            raise UserError(f"{where}.{key} must be {KINDS[kind]}, not {value!r}")
        if key in needed and value in ("", [], {}):
            raise UserError(f"{where}.{key} must not be empty")


def _require_labels(where: str, node: Iterable[Any], labels: Iterable[Any]) -> None:
    """Raises UserError unless the keys of this node are labels of the table's rows or columns."""
    there = [str(label) for label in labels]
    for key in node:
        if str(key) not in there:
            raise UserError(f"{where} has the key {str(key)!r}; use one of {', '.join(there)}")


def _require_numbers(where: str, node: Any, columns: Iterable[Any]) -> None:
    """Raises UserError unless this is None or has a number for some of the table's columns."""
    if node is None:
        return
    if not isinstance(node, dict):
        raise UserError(f"{where} must be {KINDS[dict]}, not {node!r}")
    _require_labels(where, node, columns)
    for column, number in node.items():
        is_number = type(number) in (int, float) and 0 < number < math.inf
        if number is not None and not is_number:
            raise UserError(f"{where}.{column} must be a number above 0, not {number!r}")


def cells_of(experiment: Record, root: Path) -> list[Cell]:
    """Every cell of every table, row by row."""
    cells = []
    for table in experiment["tables"]:
        common = [*experiment.get("common", []), *table.get("common", [])]
        for row, how in table["rows"].items():
            for column, where in table["columns"].items():
                slug = file_name(f"{table['name']}-{row}-{column}")
                overrides = (*common, *how, *where)
                cells.append(Cell(table["name"], row, column, overrides, root / "cells" / slug))
    return cells


def starts_of(experiment: Record, repeats: int) -> range:
    """The first seeds of `repeats` ranges; they start the experiment's number of images apart."""
    return range(0, repeats * experiment["images"], experiment["images"])


def chosen(cells: list[Cell], words: str | int | None, experiment: str) -> list[Cell]:
    """The cells whose name contains one of the words; the words are separated by commas.

    Raises UserError for a word that no name contains.
    """
    parts = listed(str(words or ""))
    for part in parts:
        if not any(part in cell.name for cell in cells):
            raise UserError(
                f"cells={part}: no cell of {experiment} has this in its name; an example of a name "
                f"is {cells[0].name!r}"
            )
    return [cell for cell in cells if not parts or any(part in cell.name for part in parts)]


@dataclass(frozen=True)
class Run:
    """One run of `sample` that a cell needs."""

    cell: Cell
    asked: Sampling
    images: int

    @property
    def root(self) -> Path:
        assert self.asked.out
        return Path(self.asked.out)

    @cached_property
    def done(self) -> bool:
        """Whether its record is complete and has the same identity and settings of the score."""
        record = records.load(self.root / "record.json") or {}
        if not _scored(record):
            return False
        now = identity_of(self.asked, known(record, self.asked), seeds=self.asked.seeds_text)
        return bool(plainly(record["identity"]) == now) and same_score(record, self.asked)

    @property
    def evaluations(self) -> int:
        """Network evaluations, counted for each image."""
        return self.images * self.asked.nfe


def runs_of(
    cells: Iterable[Cell],
    *,
    images: int,
    starts: Sequence[int],
    settings: Sequence[str],
    compose: Callable[[list[str]], Sampling],
    defaults: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[Run]:
    """The runs of these cells: for each, `images` seeds from each of `starts`.

    `compose` turns overrides into the settings of `sample`. `overrides` are the user's, for every
    cell; they replace the `defaults` with the same keys, which the experiment gives. Images are
    kept until a run is complete, so an interrupted run can continue.
    Raises UserError if `overrides` has a key that a cell, `settings` or SETTLED has.
    """
    runs = []
    for cell in cells:
        settled = {key_of(word) for word in (*cell.overrides, *settings)} | SETTLED
        if both := settled & {key_of(word) for word in overrides}:
            raise UserError(
                f"overrides: {' and '.join(sorted(both))} of {cell.name} cannot be changed; "
                "use limit=, cells=, out=, or an experiment of your own in configs/experiment"
            )
        given = {key_of(word) for word in (*overrides, *cell.overrides)}
        first = [word for word in defaults if key_of(word) not in given]
        fixed = ["save=scratch", "sheet=16", *overrides, "score=true", *settings]
        asked = compose([*first, *cell.overrides, *fixed])
        for start in starts:
            seeds, out = f"{start}-{start + images - 1}", str(cell.folder(start))
            runs.append(Run(cell, replace(asked, seeds=seeds, out=out), images))
    return runs
