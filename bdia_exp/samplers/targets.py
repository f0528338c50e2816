"""What a fit aims at: the state after smaller steps, or the fine solution from the same noise."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Estimate, Grid, Level, Sampler
from bdia_exp.samplers.rules import along, latest
from bdia_exp.samplers.schedules import Schedule, edm, is_edm, is_vp, vp

POWER = 7
"""Levels are inserted evenly in ρ^(1/7), as in EDM's grid; before a clean level, evenly in ρ."""
LEAST = 0.01
"""The fine solution goes down to this ρ, or to the grid's last level before a clean one."""
FINE = 128
"""Steps of the fine solution."""


def inserted(s: Level, t: Level, parts: int, schedule: Schedule) -> Grid:
    """From s to t in `parts` steps: parts + 1 levels of the kind of s.

    On a schedule with times, the time of an inner level is the schedule's at its ρ, shifted as the
    time of s is. Raises UserError if s is pure noise, which has no level beside it.
    """
    if s.is_noise:
        raise UserError(
            "fit.target: there are no levels between pure noise and the next one: choose a grid "
            "that starts with alpha above 0"
        )
    power = POWER if t.rho else 1
    ends = s.rho ** (1 / power), t.rho ** (1 / power)
    rhos = [(ends[0] + j / parts * (ends[1] - ends[0])) ** power for j in range(1, parts)]
    return (s, *(_beside(s, rho, schedule) for rho in rhos), t)


def _beside(s: Level, rho: float, schedule: Schedule) -> Level:
    """The level of this ρ on the path of the level s."""
    if is_edm(s):
        return edm(rho)
    found = schedule.at(rho)
    time = max(found.time + s.time - schedule.at(s.rho).time, 0.0)
    return vp(rho, time) if is_vp(s) else found._replace(time=time)


@dataclass(frozen=True)
class Local:
    """The state after `parts` smaller steps of the sampler itself, without coefficients [IIA 12].

    They start at the coarse state of the step, and share its first evaluation.
    """

    sampler: Sampler
    model: Denoiser
    grid: Grid
    schedule: Schedule
    parts: int = 3

    def __call__(self, left: int, now: Estimate) -> Tensor:
        levels = inserted(now.level, self.grid[-left], self.parts, self.schedule)
        *_, state = self.sampler(_Sharing(self.model, now), now.z, levels)
        return state


@dataclass
class _Sharing:
    """A denoiser whose first evaluation is known."""

    model: Denoiser
    first: Estimate | None

    def __call__(self, z: Tensor, level: Level) -> Estimate:
        found, self.first = self.first, None
        return found or self.model(z, level)


@dataclass(frozen=True)
class Global:
    """The fine solution from the same noise, at each level of the grid after the first."""

    states: list[Tensor]

    def __call__(self, left: int, now: Estimate) -> Tensor:
        return self.states[-left]


def fine_levels(grid: Grid, schedule: Schedule, steps: int = FINE) -> Grid:
    """The levels of the fine solution for a grid: same start, same end.

    Raises UserError if the grid starts at pure noise, or has as many steps as the fine solution.
    """
    if not grid[0].is_scalar:
        raise UserError(
            "a fit needs levels of numbers, and those of this diffusion are matrices: leave "
            "diffusion= out"
        )
    if len(grid) - 1 >= steps:
        raise UserError(
            f"fit.target=global: a fine solution of {steps} steps is no finer than this grid's "
            f"{len(grid) - 1}: give a larger fit.fine= or fit.target=local"
        )
    if grid[-1].rho:
        return inserted(grid[0], grid[-1], steps, schedule)
    least = min(max(LEAST, schedule.supported[0]), grid[-2].rho)
    if least == grid[0].rho:  # one step: straight to the clean level
        return inserted(grid[0], grid[-1], steps, schedule)
    lowest = grid[-2] if least == grid[-2].rho else _beside(grid[0], least, schedule)
    return (*inserted(grid[0], lowest, steps - 1, schedule), grid[-1])


def solving(model: Denoiser, z: Tensor, levels: Grid) -> Iterator[tuple[Estimate, Tensor]]:
    """The fine solution from z, float64 [B, …] at levels[0]: DEIS of order 3 in ρ [DEIS ρAB].

    Step by step: the evaluation at each level but the last, and the state at the next level.
    """
    trail: list[Estimate] = []
    for s, t in pairwise(levels):
        trail = [*trail[-2:], model(z, s)._replace(clean=None)]
        z = along(latest(trail, 3), trail[-1], t)
        yield trail[-1], z


def fine_end(model: Denoiser, z: Tensor, levels: Grid) -> Tensor:
    """The end of the fine solution, [B, …]. No other state is kept."""
    ((_, end),) = deque(solving(model, z, levels), maxlen=1)
    return end


@dataclass(frozen=True)
class Fine:
    """A fine solution: one evaluation at each of its levels but the last, and the state there.

    One solution serves every grid between its ends. It takes the memory of two states for each of
    its levels; `fine_end` does not.
    """

    estimates: list[Estimate]
    end: Tensor
    levels: Grid

    @classmethod
    def solved(cls, model: Denoiser, z: Tensor, levels: Grid) -> "Fine":
        """From z, float64 [B, …] at levels[0], to levels[-1]."""
        estimates, states = zip(*solving(model, z, levels), strict=True)
        return cls([*estimates], states[-1], levels)

    def at(self, level: Level) -> Tensor:
        """The state at a level from the first to the last.

        Between two levels z/α is a cubic polynomial in ρ, whose slopes are the noise estimates
        (Hermite's); after the last evaluation it is a line.
        """
        if level == self.levels[-1]:
            return self.end
        for s, t in pairwise(self.estimates):
            if s.level.rho >= level.rho >= t.level.rho:
                return _between(s, t, level)
        return self.estimates[-1].at(level)

    def on(self, grid: Grid) -> list[Tensor]:
        """The states at the levels of a grid after the first."""
        return [self.at(level) for level in grid[1:]]


def _between(s: Estimate, t: Estimate, level: Level) -> Tensor:
    """The state at a level between those of two evaluations of one trajectory."""
    step = t.level.rho - s.level.rho
    u = (level.rho - s.level.rho) / step
    start, end = s.z / s.level.alpha, t.z / t.level.alpha
    value = (
        (1 + 2 * u) * (1 - u) ** 2 * start
        + u * (1 - u) ** 2 * step * s.eps
        + u**2 * (3 - 2 * u) * end
        - u**2 * (1 - u) * step * t.eps
    )
    return level.alpha * value
