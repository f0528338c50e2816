"""gDDIM: samplers for the levels of a linear diffusion (`samplers.linear`).

gDDIM's first-order step is `transfer`, so deterministic gDDIM is `multistep` with the rule `ddim`.
Here are its multistep rule, its predictor-corrector and its stochastic form. On the scalar levels
of a VP diffusion they are DEIS and DDIM.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Estimate, Grid, Level
from bdia_exp.samplers.linear import LinearLevel, check_root, diffusion_of
from bdia_exp.samplers.rules import check_order, forget, latest

MOST_LAM = 2.0
"""The largest λ: up to it Ψ̂ is known to 1e-8. The paper's are 0 to 1."""


def predictor(trail: Sequence[Estimate], t: Level, *, order: int = 3, K: str = "R") -> Tensor:
    """gDDIM's multistep predictor: the noise as a polynomial in time [gDDIM 17, 36-37].

    `order` counts the evaluations that are used: order 3 is q = 2 of the paper's Table 6, and order
    1 the step (16). While the trail is shorter, the order is its length. K="L" puts the polynomial
    through L⁻¹ (z − Ψ x̂) instead of R⁻¹ (z − Ψ x̂), from the same evaluations: for comparison.
    A step to the clean level is x̂.

    Raises UserError for an order outside 1 to 4, an unknown K, or levels without a diffusion.
    """
    check_order(order)
    check_root(K, "sampler.rule.K")
    return integrated(latest(trail, order, _time), trail[-1], t, K)


def _time(level: Level) -> float:
    return level.time


def integrated(estimates: Sequence[Estimate], start: Estimate, t: Level, K: str = "R") -> Tensor:
    """The state of `start` at level t: Ψ z + Σ_j C_j ε_j, for a polynomial through `estimates`.

    With K = R and the estimate of `start` alone it is `transfer`, without an integral.
    """
    s = start.level
    diffusion = diffusion_of(s)
    if not isinstance(t, LinearLevel) or (
        K == "R" and len(estimates) == 1 and estimates[0] is start
    ):
        return start.at(t)
    nodes = tuple(estimate.level.time for estimate in estimates)
    z = (t.alpha / s.alpha) * start.z
    for weight, estimate in zip(
        diffusion.weights(s.time, t.time, nodes, K), estimates, strict=True
    ):
        z = z + weight * (diffusion.in_root(estimate.level.time, K) * estimate.eps)
    return z


def predict_correct(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    order: int = 2,
    points: int | None = None,
    K: str = "R",
) -> Iterator[Tensor]:
    """gDDIM's multistep predictor-corrector, two evaluations a step [gDDIM Alg. 1].

    After each step of `predictor` the network is evaluated at the new level, and the step is made
    again with this evaluation among the nodes [gDDIM 41-42]. The corrector has `points` nodes; None
    is `order`, as printed. Algorithm 1 has order `order`, with points = order + 1 one more. A step
    to the clean level is x̂, and is not corrected.

    Raises UserError for an order outside 1 to 4, `points` outside 1 to 5, or an unknown K.
    """
    check_order(order, "sampler.order")
    check_root(K, "sampler.K")
    points = order if points is None else points
    if not 1 <= points <= 5:
        raise UserError(f"sampler.points={points} must be 1 to 5")
    trail: list[Estimate] = []
    for s, t in pairwise(grid):
        now = model(z, s)
        trail.append(now)
        forget(trail)
        z = integrated(latest(trail, order, _time), now, t, K)
        if isinstance(t, LinearLevel):
            ahead = model(z, t)
            z = integrated([ahead, *latest(trail, points - 1, _time)], now, t, K)
        yield z


def stochastic(
    model: Denoiser,
    z: Tensor,
    grid: Grid,
    *,
    lam: float = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[Tensor]:
    """Stochastic gDDIM: Ψ z + (Ψ̂ − Ψ) R_s ε̂ + N(0, P_st) [gDDIM 20-21].

    λ = 0 is the deterministic step, λ = 1 solves the reverse SDE (2); on VP levels λ = 0 to 1 are
    DDIM's η. A step to the clean level is x̂, without noise. Raises UserError for λ outside 0 to
    MOST_LAM, or levels without a diffusion.
    """
    check_lam(lam)
    for s, t in pairwise(grid):
        diffusion, now = diffusion_of(s), model(z, s)
        if not isinstance(t, LinearLevel):
            z = now.at(t)
        else:
            kept, drawn = diffusion.kept(s.time, t.time, lam)
            a = t.alpha / s.alpha
            z = a * z + (t.sigma * kept - a * s.sigma) * now.eps
            if lam:
                z = z + t.sigma * (drawn * noise(z))
        yield z


def check_lam(lam: float) -> None:
    """Raises UserError unless λ is 0 to MOST_LAM."""
    if not 0 <= lam <= MOST_LAM:
        raise UserError(
            f"sampler.lam={lam} must be 0 or more, at most {MOST_LAM:g}; 0 is deterministic"
        )
