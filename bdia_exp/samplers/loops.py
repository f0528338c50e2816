"""The loops that drive every sampler.

There are three main loops: `multistep` (one evaluation per step), `heun` (two) and `coupled` (two
states). `pndm` is `multistep` after other first steps; `bdia` uses more than one past state. A
sampler is a generator of states: the caller adds progress bars, trajectories and early stops with
`tqdm(…)`, `list(…)`, `islice(…)`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bdia_exp.errors import UserError, nearest
from bdia_exp.samplers.columns import Columns
from bdia_exp.samplers.core import Denoiser, Estimate, Grid, Level, Rule, transfer
from bdia_exp.samplers.coupling import CBDIA, EDICT, Coupling, Pair
from bdia_exp.samplers.rex import Rex
from bdia_exp.samplers.rules import along, check_order, ddim, forget, latest, plms
from bdia_exp.samplers.schedules import edm, is_edm
from bdia_exp.samplers.starts import STARTS
from bdia_exp.samplers.weights import (
    OBELM,
    Addition,
    Coefficients,
    Gamma,
    coefficients_of,
    gammas,
    moved,
    require_not_negative,
)

# -- one evaluation per step ---------------------------------------------------------------------


def multistep(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    rule: Rule = ddim,
    gamma: Gamma = 0.0,
    refine: str = "literal",
    final: Rule | None = None,
    columns: Columns | None = None,
    coefficients: Coefficients = None,
    trail: Sequence[Estimate] = (),
) -> Iterator[Tensor]:
    """One evaluation per step; BDIA [BDIA 27, 65] or IIA [IIA 22] on top of any rule.

    BDIA adds one term to the rule's next state: γ times the difference between the past state and
    the newest evaluation's estimate of it. γ = 0 is the rule alone. The first step, [BDIA 25], has
    no past. `trail` gives past evaluations, to restart a trajectory from its last two states. BDIA
    uses only the level and the state of the past; its noise estimate is for rules that need it.

    With `columns` (of `samplers.columns`), these are added instead, with `coefficients`; without
    coefficients every step is the rule's.

    `refine` chooses the past state: "literal" is z_{i+1} as printed, "hat" the refined ẑ_{i+1} =
    z_{i+1} + γ times its own error term; it has no inverse. At γ = ½ only, "hat" is the public code
    before October 2023, which refined with ½ for every γ. `final` is the rule of the last step if
    that is another one (DPM-Solver's "lower_order_final"). Raises UserError for a γ that `gammas`
    refuses, or with `columns`.
    """
    _check_refine(refine)
    if columns and gamma:
        raise UserError("sampler.gamma has no effect on a sampler with columns: leave it out")
    trail, steps = [*trail], len(grid) - 1
    weights = coefficients_of(coefficients)
    if not columns:
        weights = gammas(gamma, (*(old.level for old in trail), *grid))
    past = trail[-1] if trail else None
    for left, (s, t) in zip(range(steps, 0, -1), pairwise(grid), strict=True):
        now = model(z, s)
        trail.append(now)
        if not columns:  # they may use any number
            forget(trail)
        z = (final if final and left == 1 else rule)(trail, t)
        terms: list[Tensor] = []
        if weights and columns:
            terms = columns(trail, t)
        elif weights and past:
            terms = [past.z - now.at(past.level)]
        row = weights(Addition(left, now, z, terms))
        z = moved(z, row, terms)
        past = now._replace(z=moved(now.z, row, terms)) if refine == "hat" else now
        yield z


def pndm(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    start: str = "rk4",
    order: int = 4,
    gamma: Gamma = 0.0,
    columns: Columns | None = None,
    coefficients: Coefficients = None,
) -> Iterator[Tensor]:
    """`multistep` with the rule `plms`, after first steps that need no past.

    F-PNDM is start="rk4" and order=4 (9 evaluations more than steps), S-PNDM is start="heun" and
    order=2 (1 more), the PLMS of Stable Diffusion start="heun" and order=4 (1 more). With γ > 0
    these are their BDIA forms [BDIA Remark 4]. `columns` and `coefficients` are as in `multistep`.

    Raises UserError for an unknown start, an order outside 1 to 4 or a γ that `gammas` refuses.
    """
    if start not in STARTS:
        raise UserError(f"sampler.start={start!r} is unknown{nearest(start, STARTS)}")
    check_order(order, "sampler.order")
    first, count = STARTS[start]
    trail: list[Estimate] = []
    for s, t in pairwise(grid[: count + 1]):
        trail.append(model(z, s))
        z = first(model, trail[-1], t)
        yield z
    yield from multistep(
        model,
        z,
        grid[count:],
        rule=partial(plms, order=order),
        gamma=gamma,
        columns=columns,
        coefficients=coefficients,
        trail=trail,
    )


def bdia(
    model: Denoiser, z: Tensor, grid: Grid, *, gamma1: float, gamma2: float
) -> Iterator[Tensor]:
    """Second-order BDIA [BDIA 29].

    In every Δ, of the past time-slots and of the next one, the noise is the straight line in σ/α
    through the two newest evaluations. γ₂ = 0 does not use the oldest state z_{i+2}; with γ₁ = 0
    too, it is `deis` of order 2 in σ/α. Raises UserError for a negative γ.
    """
    require_not_negative("gamma1", gamma1)
    require_not_negative("gamma2", gamma2)
    trail: list[Estimate] = []
    for s, t in pairwise(grid):
        trail.append(model(z, s))
        forget(trail)
        line = latest(trail, 2)
        z = along(line, trail[-1], t)
        for gamma, now, past in zip((gamma1, gamma2), trail[::-1], trail[-2::-1], strict=False):
            z = z + gamma * (past.z - along(line, now, past.level))
        yield z


# -- two evaluations per step --------------------------------------------------------------------


def heun(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    gamma: Gamma = 0.0,
    refine: str = "literal",
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[Tensor]:
    """EDM's second-order sampler [EDM Alg. 1] and, for γ > 0, BDIA-EDM [BDIA Alg. 1].

    Before each step BDIA-EDM moves the state z_i, by the fraction γ, towards the past state stepped
    along the averaged slope (d_{i+1} + d_i)/2. It still uses the slope d_i of the unmoved z_i, so
    no evaluation is added. A step to σ = 0 is Euler's.

    `refine` chooses the past state of line 6: "literal" is z_{i+1} as printed, "hat" the refined
    ẑ_{i+1} from which z_i was built.

    With S_churn > 0 every step first adds noise, from `noise`, as EDM's stochastic sampler does
    [EDM Alg. 2]. Raises UserError if S_churn > 0 is used with γ > 0 (the past state would be of
    another trajectory) or on levels that are not EDM's, and for a γ that `gammas` refuses.
    """
    if gamma == OBELM:
        raise UserError("sampler.gamma=obelm is for sampler=bdia_ddim: give a number here")
    weights = gammas(gamma, grid)
    if not (S_churn >= 0 and S_noise >= 0):
        raise UserError(
            f"sampler.S_churn={S_churn} and sampler.S_noise={S_noise} must be 0 or more"
        )
    if S_churn and weights:
        raise UserError("sampler.S_churn adds noise at every step: set sampler.gamma=0 with it")
    if S_churn and not all(map(is_edm, grid)):
        raise UserError(
            "sampler.S_churn needs the levels of EDM: choose grid=karras and diffusion=own"
        )
    _check_refine(refine)
    most = min(S_churn / (len(grid) - 1), math.sqrt(2) - 1)
    past: Estimate | None = None
    for left, (s, t) in zip(range(len(grid) - 1, 0, -1), pairwise(grid), strict=True):
        if S_churn:
            fresh = noise(z)  # drawn at every step, even if not used, as in EDM's program
            noisier = edm(s.sigma * (1 + most)) if S_min <= s.sigma <= S_max else s
            z = z + math.sqrt(noisier.sigma**2 - s.sigma**2) * S_noise * fresh
            s = noisier
        now = model(z, s)
        base = z
        if weights and past:
            back = _average(past, now, past.level, s)
            after = partial(_heun_step, model, now, t=t)
            (weight,) = weights(Addition(left, now, z, [back - z], after))
            base = (1 - weight) * z + weight * back
        z = _heun_step(model, now, base, t=t)
        past = now._replace(z=base) if refine == "hat" else now
        yield z


def _heun_step(model: Denoiser, now: Estimate, base: Tensor, *, t: Level) -> Tensor:
    """From the state `base` at the level of `now`, whose noise it uses; Euler's step to σ = 0."""
    z = transfer(base, now.eps, now.level, t)
    if t.sigma == 0:
        return z
    return _average(now._replace(z=base), model(z, t), now.level, t)


def _average(start: Estimate, other: Estimate, s: Level, t: Level) -> Tensor:
    """From start's state at s to t along the mean of the two noise estimates."""
    return transfer(start.z, (start.eps + other.eps) / 2, s, t)


def _check_refine(refine: str) -> None:
    if refine not in ("literal", "hat"):
        raise UserError(
            f"sampler.refine={refine!r} is unknown{nearest(refine, ['literal', 'hat'])}"
        )


# -- two states ----------------------------------------------------------------------------------


def coupled(
    model: Denoiser, pair: Pair, grid: Grid, coupling: Coupling, *, undo: bool = False
) -> Iterator[Pair]:
    """Two states, moved along the grid by a coupling; or, with `undo`, back along grid[::-1]."""
    steps = list(enumerate(pairwise(grid)))
    for place, (s, t) in reversed(steps) if undo else steps:
        move = coupling.undo if undo else coupling.step
        pair = move(model, pair, s, t, place)
        yield pair


def edict(
    model: Denoiser, z: Tensor, grid: Grid, *, p: float = 0.93, alternate: bool = False
) -> Iterator[Tensor]:
    """EDICT from two equal states; yields the first one [BDIA 11-14]."""
    for first, _ in coupled(model, (z, z), grid, EDICT(p, alternate)):
        yield first


def cbdia(
    model: Denoiser, z: Tensor, grid: Grid, *, gamma1: float, gamma2: float
) -> Iterator[Tensor]:
    """Coupled BDIA from two equal states; yields y, which at (0, 1) is BDIA's [BDIA 43-46]."""
    for _, second in coupled(model, (z, z), grid, CBDIA(gamma1, gamma2)):
        yield second


def rex(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    tableau: str = "euler",
    predicts: str = "noise",
    zeta: float = 0.999,
    sde: str | None = None,
    seeds: Sequence[int] = (),
) -> Iterator[Tensor]:
    """Rex from two equal states; yields the first one [REX forward].

    `seeds` are those of the images: they give the Brownian paths if `sde` is set.
    """
    coupling = Rex(tableau, predicts, zeta, sde, tuple(seeds))
    for first, _ in coupled(model, (z, z), grid, coupling):
        yield first
