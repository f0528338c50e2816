"""IIA-EDM: EDM's sampler with columns, and what these are computed from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.columns import step_size
from bdia_exp.samplers.core import Denoiser, Estimate, Grid, Level, transfer
from bdia_exp.samplers.weights import Addition, Coefficients, coefficients_of, moved


@dataclass
class Averaged:
    """A step of Heun's method: its two evaluations, and the coefficients of its columns."""

    now: Estimate
    second: Estimate
    row: Sequence[float] = field(default=(0.0, 0.0))

    @property
    def mean(self) -> Tensor:
        """The averaged slope (d_i + d'_i)/2."""
        return (self.now.eps + self.second.eps) / 2

    @property
    def half(self) -> Tensor:
        """(d'_i − d_i)/2 = −(x̂' − x̂)/(2σ_t) on EDM's levels: how the mean differs from d_i."""
        return (self.second.eps - self.now.eps) / 2

    @property
    def fitted(self) -> Tensor:
        """The slope with its two coefficients: Δ̃_i of [IIA 18]."""
        return (1 + self.row[0]) * self.now.eps + (1 + self.row[1]) * self.half


Columns = Callable[[Sequence[Averaged], Level], list[Tensor]]
"""All steps so far, newest last, and the level to reach → the columns of this step."""


def slopes(steps: Sequence[Averaged], t: Level, *, r: int = 1) -> list[Tensor]:
    """Basic IIA-EDM: h times the averaged slopes of this step and r earlier ones [IIA 11-14].

    The coefficient of this step's slope is the paper's γ_i0 minus 1, which is the base method's.
    Raises UserError for a negative r.
    """
    _check_r(r)
    h = step_size(steps[-1].now.level, t)
    return [h * step.mean for step in steps[: -r - 2 : -1]]


def parts(steps: Sequence[Averaged], t: Level, *, r: int = 1) -> list[Tensor]:
    """Advanced IIA-EDM: the two parts of the slope, and the fitted slopes before it [IIA 18-19].

    The first two coefficients are the paper's σ_i β_i0 − 1 and β_i1 − 1; 0 is EDM's method.
    Raises UserError for a negative r.
    """
    _check_r(r)
    now = steps[-1]
    h = step_size(now.now.level, t)
    older = steps[-2 : -r - 2 : -1] if r else []
    return [h * now.now.eps, h * now.half, *(h * step.fitted for step in older)]


def _check_r(r: int) -> None:
    if r < 0:
        raise UserError(f"sampler.columns.r={r} must be 0 or more: the number of earlier slopes")


def averaged(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    columns: Columns = parts,
    coefficients: Coefficients = None,
) -> Iterator[Tensor]:
    """IIA-EDM: EDM's sampler, and columns with coefficients [IIA Alg. 1, 11, 18].

    The columns are `slopes` (basic) or `parts` (advanced). Without coefficients it is `heun`. A
    step to σ = 0 is Euler's, without columns. Raises UserError for a file of coefficients that was
    not read, and for a step without one coefficient for each column.
    """
    weights = coefficients_of(coefficients)
    steps: list[Averaged] = []
    for left, (s, t) in zip(range(len(grid) - 1, 0, -1), pairwise(grid), strict=True):
        now = model(z, s)
        z = now.at(t)
        if not weights:
            steps.clear()
        if t.sigma != 0:
            steps.append(Averaged(now, model(z, t)))
            z = transfer(now.z, steps[-1].mean, s, t)
        terms = columns(steps, t) if weights and t.sigma != 0 else []
        row = weights(Addition(left, now, z, terms))
        z = moved(z, row, terms)
        if terms:
            steps[-1].row = row
        yield z
