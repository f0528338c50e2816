"""The loops that drive every sampler.

Histories have three shapes, so there are three loops: `multistep` (one evaluation a step), `heun`
(two) and, for methods with two coupled states, a third. A sampler is a generator of states:
progress bars, trajectories and early stops are the caller's `tqdm(…)`, `list(…)`, `islice(…)`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from bdia_exp.core import Counted, Denoiser, Estimate, Grid, Level, Rule, Sampler, transfer
from bdia_exp.errors import UserError, nearest
from bdia_exp.rules import ddim


def multistep(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    rule: Rule = ddim,
    gamma: float = 0.0,
    past: Estimate | None = None,
) -> Iterator[Tensor]:
    """One evaluation a step; BDIA on top of any rule [BDIA 27].

    BDIA is one term: where the newest evaluation says we go next, plus γ times how wrong it thinks
    the past was. γ = 0 is the rule alone. The first step, [BDIA 25], has no past; `past` supplies
    one to restart a trajectory from its last two states. BDIA uses its level and state only; its
    noise estimate matters to rules that look back.
    """
    _check_gamma(gamma)
    trail = [past] if past else []
    for s, t in pairwise(grid):
        trail.append(model(z, s))
        z = rule(trail, t)
        if gamma and len(trail) > 1:
            past, now = trail[-2:]
            z = z + gamma * (past.z - now.at(past.level))
        yield z


def heun(
    model: Denoiser, z: Tensor, grid: Grid, *, gamma: float = 0.0, refine: str = "literal"
) -> Iterator[Tensor]:
    """EDM's second-order sampler [EDM Alg. 1] and, for γ > 0, BDIA-EDM [BDIA Alg. 1].

    Before each step BDIA-EDM moves the state z_i, by the fraction γ, towards what the averaged
    slope (d_{i+1} + d_i)/2 makes of the past state, and keeps using the slope d_i that was
    evaluated at the unmoved z_i: no evaluation is added. A step to σ = 0 is Euler's.

    `refine` chooses the past state of line 6: "literal" is z_{i+1} as printed, "hat" the refined
    ẑ_{i+1} from which z_i was built.
    """
    _check_gamma(gamma)
    if refine not in ("literal", "hat"):
        raise UserError(
            f"sampler.refine={refine!r} is unknown{nearest(refine, ['literal', 'hat'])}"
        )
    past: Estimate | None = None
    for s, t in pairwise(grid):
        now = model(z, s)
        base = z
        if gamma and past:
            base = (1 - gamma) * z + gamma * _average(past, now, past.level, s)
        z = transfer(base, now.eps, s, t)
        if t.sigma != 0:
            z = _average(now._replace(z=base), model(z, t), s, t)
        past = now._replace(z=base) if refine == "hat" else now
        yield z


def _average(start: Estimate, other: Estimate, s: Level, t: Level) -> Tensor:
    """From start's state at s to t along the mean of the two noise estimates."""
    return transfer(start.z, (start.eps + other.eps) / 2, s, t)


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0:
        raise UserError(f"sampler.gamma={gamma} must not be negative; the papers use 0 to 1")


def evaluations(sampler: Sampler, grid: Grid) -> int:
    """The network evaluations that `sampler` spends on `grid`.

    Counted in a rehearsal on a state of one number, so that no sampler has to declare its cost.
    Raises UserError for arguments that the sampler refuses.
    """
    network = Counted(lambda z, level: Estimate(level, z, torch.zeros_like(z)))
    for _ in sampler(network, torch.zeros(1, dtype=torch.float64), grid):
        pass
    return network.nfe


def grid_for(sampler: Sampler, grid: Callable[[int], Grid], nfe: int) -> Grid:
    """The grid on which `sampler` spends exactly `nfe` evaluations.

    Raises UserError naming the nearest possible values when there is none.
    """

    def cost(steps: int) -> int:
        return evaluations(sampler, grid(steps))

    steps = 1 + bisect_left(range(1, max(nfe, 1)), nfe, key=cost)  # no step is free
    above = cost(steps)
    if above == nfe:
        return grid(steps)
    possible = f"{cost(steps - 1)} or {above}" if steps > 1 else f"{above} or more"
    raise UserError(f"nfe={nfe} is not possible with this sampler: choose {possible}")
