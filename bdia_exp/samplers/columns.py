"""Columns: the vectors that a step may add to its base, each with its own coefficient.

These are of loops with one evaluation per step: functions of (trail, level), like a rule. At a step
without enough history they are fewer, or none. Those of EDM's sampler are in `iia_edm`.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Estimate, Level

Columns = Callable[[Sequence[Estimate], Level], list[Tensor]]
"""All evaluations so far, newest last, and the level to reach → the columns of this step."""


def differences(trail: Sequence[Estimate], t: Level) -> list[Tensor]:
    """IIA-DDIM's: x̂_i − x̂_{i−1} and ε̂_i − ε̂_{i−1} [IIA 22-23]; none at the first step.

    BDIA's column is −(α_r, σ_r) in this plane, r the past level. After a step of DDIM the two are
    parallel, so only one combination of their coefficients is determined.
    """
    if len(trail) < 2:
        return []
    past, now = trail[-2:]
    return [now.x - past.x, now.eps - past.eps]


def newest(trail: Sequence[Estimate], t: Level) -> list[Tensor]:
    """The newest noise estimate ε̂_i: the one column of IIA on DPM-Solver++."""
    return [trail[-1].eps]


def noises(trail: Sequence[Estimate], t: Level, *, count: int = 3) -> list[Tensor]:
    """h ε̂_i and h (ε̂_i − ε̂_{i−k}), k = 1 … count − 1: Adams-Bashforth with free weights.

    On DDIM's base. h is the factor of ε̂ in `transfer`. Pure noise has no such factor: no columns.
    Raises UserError for a count below 1.
    """
    if count < 1:
        raise UserError(f"sampler.columns.count={count} must be 1 or more: the number of noises")
    now = trail[-1]
    if now.level.is_noise:
        return []
    h = step_size(now.level, t)
    older = trail[-2 : -count - 1 : -1]
    return [h * now.eps, *(h * (now.eps - past.eps) for past in older)]


def step_size(s: Level, t: Level) -> float:
    """The factor of ε̂ in `transfer`: σ_t − (α_t/α_s) σ_s."""
    size: float = t.sigma - t.alpha / s.alpha * s.sigma
    return size
