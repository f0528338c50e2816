"""Coefficients that a sampler reads from a file: their names, the file, and its check."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bdia_exp.errors import UserError, brief
from bdia_exp.jobs.asked import Choice
from bdia_exp.samplers.core import Grid, Sampler
from bdia_exp.samplers.weights import OBELM, Given
from bdia_exp.sources import checkpoints
from bdia_exp.store.files import json_object
from bdia_exp.store.records import Record

AUTO = "auto"
"""The value for a file that is made when it is needed, and kept in the cache; a target may follow:
auto:variance."""
USUAL = 2
"""The version of the usual options of a fit: part of the name of a file in the cache."""
KEYS = ("coefficients", "gamma")
"""The arguments of a sampler that may name a file."""
CLOSE = 1e-9
"""Relative tolerance of a level: another machine's powers may differ in the last digits."""


def file_of(sampler: Mapping[str, Any]) -> tuple[str, str] | None:
    """The argument of a sampler that names a file, and the name; None if there is none."""
    for key in KEYS:
        value = sampler.get(key)
        if isinstance(value, str) and value != OBELM:
            return key, value
    return None


def is_automatic(name: str) -> bool:
    """Whether the file is one of the cache, made when it is needed."""
    return name == AUTO or name.startswith(f"{AUTO}:")


def target_of(name: str) -> str:
    """The target of the fit that makes an automatic file."""
    return name.removeprefix(AUTO).lstrip(":") or "global"


def bare(sampler: Choice[Sampler]) -> Sampler:
    """The sampler without coefficients that belong to one grid: it costs the same evaluations."""
    of_a_grid = {key for key in KEYS if isinstance(sampler.config.get(key), (str, list))}
    if not of_a_grid:
        return sampler.make
    make: Any = sampler.make
    return partial(make.func, **{k: v for k, v in make.keywords.items() if k not in of_a_grid})


@dataclass(frozen=True)
class Coefficients:
    """What a file of `fit` has: the rows, and what they are for."""

    path: Path
    rows: list[list[float]]
    made_for: Record

    @classmethod
    def read(cls, name: str) -> "Coefficients":
        """Raises UserError if there is no such file, or if it is not one of `fit`."""
        path = checkpoints.locate(name, "make it with `bdia-exp fit`")
        try:
            found = json_object(path.read_text(encoding="utf-8"))
            rows, made_for = found["coefficients"], found["for"]
            for row in rows:
                if not all(isinstance(w, (int, float)) and math.isfinite(w) for w in row):
                    raise ValueError("a coefficient is not a finite number")
            if not isinstance(made_for, dict) or not isinstance(made_for.get("levels", []), list):
                raise ValueError("its key for is not as it should be")
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path} holds no coefficients ({brief(error)}): give a file that `bdia-exp fit` "
                "wrote"
            ) from None
        return cls(path, [[*map(float, row)] for row in rows], made_for)

    def require(self, now: Record) -> None:
        """Raises UserError, naming the first difference, unless they were fitted for `now`.

        Levels may be the last ones of those that were fitted.
        """
        keys = [key for key in {**now, **self.made_for} if key != "levels"]
        differs = [key for key in keys if self.made_for.get(key) != now.get(key)]
        fitted = self.made_for.get("levels") or []
        if not _same_levels(fitted[-len(now["levels"]) :], now["levels"]):
            differs.append("levels")
        if differs:
            key = differs[0]
            if key == "levels":
                was, now_is = (f"{len(x) - 1} steps" for x in (fitted, now["levels"]))
                detail = f"other levels ({was}; this grid has {now_is})"
            else:
                was, now_is = (brief(x.get(key)) for x in (self.made_for, now))
                detail = f"another {key} ({was}, not {now_is})"
            raise UserError(
                f"{self.path} was fitted for {detail}: fit again with `bdia-exp fit`, or give auto"
            )


def _same_levels(old: Any, new: list[list[float]]) -> bool:
    try:
        return len(old) == len(new) and all(
            math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE)
            for one, other in zip(old, new, strict=True)
            for a, b in zip(one, other, strict=True)
        )
    except (TypeError, ValueError, OverflowError):
        return False


def plain_levels(grid: Grid) -> list[list[float]]:
    """The levels of a grid as plain data."""
    return [[*map(float, level)] for level in grid]


def bound(sampler: Choice[Sampler], found: Coefficients | None) -> Sampler:
    """The sampler with these coefficients; the sampler as it is for None."""
    if found is None:
        return sampler.make
    named = file_of(sampler.config)
    assert named
    return partial(bare(sampler), **{named[0]: Given(found.rows)})
