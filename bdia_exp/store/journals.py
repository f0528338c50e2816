"""Journals: what each process has done for a run of shards, for its record and for `status`.

While a run is not finished, each process has a file `shards/PART.RANK.json` of its own.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType

from bdia_exp import dist
from bdia_exp.errors import UserError
from bdia_exp.store import locks, records
from bdia_exp.store.records import Record
from bdia_exp.store.shards import FOLDER, Part

WHOLE = "run"
"""The name of the part that is the whole run."""
TYPES: records.Types = {
    "part": (str, NoneType),
    "sampled": (int,),
    "seconds": (int, float),
    "nfe": (int, NoneType),
    "error": (str,),
    "starts": (list,),
}


class Journal:
    """The journal of this process, to be used in a `with` block; an exception is noted in it.

    `starts` is the provenance of all starts of its part, this one last (`records.starts`).
    """

    def __init__(
        self, root: Path, part: Part | None, nfe: int | None, starts: Sequence[Record] = ()
    ):
        name = part.name if part else WHOLE
        self._file = root / FOLDER / f"{name}.{dist.rank()}.json"
        self._began, self.sampled, self.nfe = time.perf_counter(), 0, nfe
        self._known: Record = {
            "part": str(part) if part else None,
            "process": locks.this_process(),
            "starts": [*starts],
        }

    def write(self, **more: object) -> None:
        """Writes what was done so far."""
        seconds = max(round(time.perf_counter() - self._began, 3), 0.001)
        done = {"sampled": self.sampled, "seconds": seconds, "nfe": self.nfe}
        records.save(self._file, self._known | done | more)

    def __enter__(self) -> "Journal":
        self.write()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        with suppress(UserError):  # if the disk is full, that error is known already
            if error is None:
                self.write()
            else:
                asked = isinstance(error, KeyboardInterrupt)
                known = "a signal asked it to stop" if asked else str(error)
                what = known or type(error).__name__
                self.write(error=what.partition("\n")[0][:500])


def read(root: Path) -> list[Record]:
    """All journals of a run. One that is damaged is left out."""
    found = []
    for file in sorted((root / FOLDER).glob("*.json")):
        with suppress(UserError, ValueError):
            found.append(_checked(records.load(file) or {}))
    return found


def _checked(journal: Record) -> Record:
    """The journal. Raises ValueError or UserError if it has what `Journal` does not write."""
    records.require_types(journal, TYPES)
    if journal.get("part") is not None:
        Part.parse(journal["part"])
    if not journal.get("seconds", 1) > 0:
        raise ValueError("it took no time")
    return journal


def remove(root: Path, part: Part | None = None) -> None:
    """Deletes the journals of a part, or all of them."""
    for file in (root / FOLDER).glob(f"{part.name}.*.json" if part else "*.json"):
        file.unlink(missing_ok=True)


def starts(root: Path, part: Part | None = None) -> list[Record]:
    """The provenance of the starts of a part, or of all parts: each once, for all ranks."""
    of_part = (one for one in read(root) if not part or one.get("part") == str(part))
    return records.each_once(start for one in of_part for start in one.get("starts", []))


def nfe(root: Path) -> int | None:
    """The number of evaluations that a process has counted; None if no journal has it."""
    return next((found for one in read(root) if (found := one.get("nfe"))), None)


def totals(root: Path) -> Record:
    """The journals as entries of a record; the time is that of the process that took longest."""
    found = [one for one in read(root) if {"sampled", "seconds"} <= one.keys()]
    return {
        "processes": len(found),
        "sampled": sum(one["sampled"] for one in found),
        "seconds": max((one["seconds"] for one in found), default=0.001),
        "images_per_second": round(sum(one["sampled"] / one["seconds"] for one in found), 3),
    }
