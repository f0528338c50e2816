"""The coefficients of a step, one row per step: given as numbers, or computed from the grid.

A step of a loop is base + Σ_k w_k column_k. The columns are computed from past evaluations. BDIA
has one column, the error of the newest estimate at the past level; its coefficient is γ. `Weights`
gives the coefficients: known numbers (`Given`), or a solution by least squares (`fitted.Fit`). So
a fit and a sampler are the same loop.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Estimate, Grid, Level

OBELM = "obelm"

Rows = Sequence[Sequence[float]]
"""A row of coefficients for each step; empty for a step without columns. The last row belongs to
the last step, so the rows of a grid are also those of its last steps."""


class Addition(NamedTuple):
    """What one step may add to its base.

    `left` is the number of steps that are left, 1 at the last step. `now` is the newest evaluation,
    `base` the state without the columns. `after` is the rest of the step, if the columns are added
    before it.
    """

    left: int
    now: Estimate
    base: Tensor
    columns: Sequence[Tensor]
    after: Callable[[Tensor], Tensor] | None = None


class Weights(Protocol):
    """The coefficients of each step."""

    def __bool__(self) -> bool:
        """False if every coefficient is 0: the columns are then not computed."""
        ...

    def __call__(self, step: Addition, /) -> Sequence[float]:
        """One coefficient for each column."""
        ...


@dataclass(frozen=True)
class Given:
    """Coefficients that are known. Raises UserError for a step that has other columns."""

    rows: Rows

    def __bool__(self) -> bool:
        return any(map(any, self.rows))

    def __call__(self, step: Addition, /) -> Sequence[float]:
        if not step.columns:
            return ()
        row = self.rows[-step.left] if step.left <= len(self.rows) else ()
        if len(row) != len(step.columns):
            raise UserError(
                f"the step that is {step.left} before the end has {len(row)} coefficients, and "
                f"this sampler needs {len(step.columns)}: fit them again with `bdia-exp fit`"
            )
        return row


NONE = Given(())
"""No coefficients: every step is its base."""


def moved(base: Tensor, row: Sequence[float], columns: Sequence[Tensor]) -> Tensor:
    """base + Σ_k w_k column_k."""
    for weight, column in zip(row, columns, strict=True):
        base = base + weight * column
    return base


Coefficients: TypeAlias = Weights | str | None
"""Coefficients of columns that are not BDIA's. A text names a file, which must be read first."""


def coefficients_of(given: Coefficients) -> Weights:
    """The weights; none for None. Raises UserError for a file that was not read."""
    if isinstance(given, str):
        raise UserError(
            f"sampler.coefficients={given}: coefficients belong to one model and grid, and cannot "
            "be used here; leave this sampler out"
        )
    return given or NONE


Gamma: TypeAlias = float | list[float | str] | str | Weights
"""BDIA's γ: one number; a list, whose last number is for the last step and which may leave out the
first step; "obelm"; or `Weights`. A number in a list may be a fraction, "23/25"."""


def gammas(gamma: Gamma, levels: Grid) -> Weights:
    """γ as the coefficients of BDIA's column on these levels, which run to the end of the grid.

    Raises UserError for a negative γ, and for a list that has too few numbers or no numbers.
    """
    if isinstance(gamma, (int, float)):
        require_not_negative("gamma", gamma)
        return Given([(gamma,)] * (len(levels) - 1)) if gamma else NONE
    if isinstance(gamma, str):
        if gamma == OBELM:
            if not levels[0].is_scalar:
                raise UserError(
                    "sampler.gamma=obelm needs levels of numbers, and those of this diffusion are "
                    "matrices: give a number"
                )
            return Given([(each,) for each in obelm(levels)])
        raise UserError(
            f"sampler.gamma={gamma} must be a number, a list of numbers, obelm, or a file that "
            "`bdia-exp fit` wrote"
        )
    if not isinstance(gamma, Sequence):
        return gamma
    numbers, needed = [as_number(each) for each in gamma], max(len(levels) - 2, 0)
    if len(numbers) < needed:
        raise UserError(
            f"sampler.gamma has {len(numbers)} numbers, and a grid of {len(levels) - 1} steps "
            f"needs {needed}: one for each step but the first"
        )
    return Given([(each,) for each in numbers])


def require_not_negative(key: str, gamma: float) -> None:
    """Raises UserError for a negative γ. `key` is its name among the arguments of the sampler."""
    if not gamma >= 0:
        raise UserError(f"sampler.{key}={gamma} must not be negative; the papers use 0 to 1")


def as_number(gamma: float | str) -> float:
    """One γ of a list. Raises UserError unless it is finite, or a fraction of whole numbers."""
    try:
        above, _, below = str(gamma).partition("/")
        found = float(gamma) if not below else int(above) / int(below)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"sampler.gamma: {gamma} is no number: give numbers such as 0.5 or 1/2")
    return found


def each_gamma(gamma: Gamma, grid: Grid) -> list[float]:
    """γ of every step of a grid but the first, in the order of the steps.

    Raises UserError as `gammas` does, and for `Weights` that are not `Given`.
    """
    weights = gammas(gamma, grid)
    if not isinstance(weights, Given):
        raise UserError("these coefficients are not known before the steps are made")
    count = max(len(grid) - 2, 0)
    rows = weights.rows[len(weights.rows) - count :] if weights.rows else [(0.0,)] * count
    return [row[0] if row else 0.0 for row in rows]


def obelm(levels: Grid) -> list[float]:
    """The γ with which BDIA-DDIM is O-BELM: (α_t/α_r) (δ₂/δ₁)² for each step but the first.

    [BELM 15] For a step from level s to t with the past level r: δ₁ = ρ_s − ρ_r, δ₂ = ρ_t − ρ_s,
    ρ = σ/α. It is 0, DDIM's step, where a level repeats or r is pure noise.
    """
    return [_obelm(r, s, t) for (r, s), (_, t) in pairwise(pairwise(levels))]


def _obelm(r: Level, s: Level, t: Level) -> float:
    if r.is_noise or s.rho == r.rho:
        return 0.0
    ratio: float = t.alpha / r.alpha * ((t.rho - s.rho) / (s.rho - r.rho)) ** 2
    return ratio
