"""Rules: from the trail of evaluations to the next state.

A rule is a function of (trail, level). It may use any number of past evaluations; the loops of
`samplers.loops` keep the trail. Every rule chooses a noise for one `transfer`: the newest one
(`ddim`), a mean of several (`plms`, `deis`), or that of an extrapolated clean image (`dpmpp`).
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor

from bdia_exp.errors import UserError, nearest
from bdia_exp.samplers.core import Estimate, Level, transfer
from bdia_exp.samplers.quadrature import gauss_legendre
from bdia_exp.samplers.schedules import linear_vp_time


def ddim(trail: Sequence[Estimate], t: Level) -> Tensor:
    """DDIM: along the newest estimate's line [BDIA 6-7]. On EDM levels this is Euler's step."""
    return trail[-1].at(t)


def leapfrog(trail: Sequence[Estimate], t: Level) -> Tensor:
    """The midpoint rule: from the past state over both steps along the newest noise.

    The first step is `ddim`. Where α ≡ 1 this is BDIA-DDIM with γ = 1.
    """
    past, now = trail[-2:] if len(trail) > 1 else (trail[-1], trail[-1])
    return transfer(past.z, now.eps, past.level, t)


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(trail: Sequence[Estimate], t: Level, *, order: int = 4) -> Tensor:
    """Adams-Bashforth weights of the noise, as if the levels were evenly spaced [PNDM PLMS].

    While the trail is shorter than `order`, the order is the trail's length: DEIS calls it iPNDM.
    Raises UserError for an order outside 1 to 4.
    """
    check_order(order)
    weights = ADAMS_BASHFORTH[min(order, len(trail)) - 1]
    return trail[-1]._replace(eps=_mixed(trail[::-1], weights)).at(t)


CLOCKS: dict[str, Callable[[float], float]] = {
    "rho": lambda rho: rho,
    "log_rho": math.log,
    "vp_time": linear_vp_time,
}
"""Functions of ρ = σ/α; in `deis` the noise is a polynomial in one of them."""


def deis(trail: Sequence[Estimate], t: Level, *, order: int = 3, clock: str = "vp_time") -> Tensor:
    """Exponential Adams-Bashforth: the noise as a polynomial in a clock, integrated over ρ = σ/α.

    [DEIS tAB, ρAB]. clock="vp_time" is the paper's tAB, "rho" its ρAB; "log_rho" is what diffusers
    calls DEIS. `order` counts the evaluations that are used: order 4 is the paper's tAB3. While
    the trail is shorter, the order is its length.

    Raises UserError for an order outside 1 to 4 or an unknown clock.
    """
    check_order(order)
    if clock not in CLOCKS:
        raise UserError(f"sampler.rule.clock={clock!r} is unknown{nearest(clock, CLOCKS)}")
    return along(latest(trail, order), trail[-1], t, clock)


def dpmpp(trail: Sequence[Estimate], t: Level) -> Tensor:
    """DPM-Solver++(2M): along the line of an extrapolated clean image [BDIA 64].

    x̄ = x̂ + (x̂ − x̂_past)/2r, r the past step over the next one in λ = log α/σ. The first step and
    those that use a level with σ = 0 or α = 0, where λ is infinite, are `ddim`.
    """
    now, *past = latest(trail, 2)
    if not past or any(e.rho in (0, math.inf) for e in (t, now.level, past[0].level)):
        return now.at(t)
    ahead = math.log(now.level.rho / t.rho)
    behind = math.log(past[0].level.rho / now.level.rho)
    x = now.x + ahead / (2 * behind) * (now.x - past[0].x)
    return Estimate.from_x(now.level, now.z, x).at(t)


def rho_of(level: Level) -> float:
    """σ/α. Raises UserError for a level of matrices, which has none."""
    if not level.is_scalar:
        raise UserError(
            "this sampler needs levels with one sigma: with diffusion=cld choose sampler=gddim, "
            "gddim_multistep or bdia_ddim"
        )
    return float(level.rho)


MOST_ORDER = 4
"""The largest order of a rule: the number of different levels whose evaluations it may use."""


def latest(
    trail: Sequence[Estimate], count: int, clock: Callable[[Level], float] = rho_of
) -> list[Estimate]:
    """The last `count` estimates at different levels, newest first.

    A grid may contain a level twice (`grids.quad`), but a polynomial has one value there. Levels
    differ if their `clock` does. Raises UserError for levels of matrices, unless a clock is given.
    """
    found: dict[float, Estimate] = {}
    for estimate in reversed(trail):
        at = clock(estimate.level)
        if len(found) < count:
            found.setdefault(at, estimate)
    return [*found.values()]


def forget(trail: list[Estimate]) -> None:
    """Drops the oldest estimates, which no rule uses: what stays has MOST_ORDER different levels.

    A long run would else keep every state and noise that it ever had.
    """
    while len({estimate.level.time for estimate in trail[1:]}) >= MOST_ORDER:
        del trail[0]


def along(estimates: Sequence[Estimate], start: Estimate, t: Level, clock: str = "rho") -> Tensor:
    """The state of `start`, moved to level t; the noise is a polynomial through `estimates`.

    Its variable is a clock of `CLOCKS`; the step uses its mean over ρ. Pure noise has ρ = ∞: a step
    from it or to it follows the line of `start`, and its estimate is not a node.
    """
    if t.is_noise or start.level.is_noise:
        return start.at(t)
    estimates = [estimate for estimate in estimates if not estimate.level.is_noise]
    nodes = tuple(estimate.level.rho for estimate in estimates)
    if clock == "log_rho" and 0 in nodes:
        raise UserError("sampler.rule.clock=log_rho has no clean level: choose vp_time or rho")
    weights = _mean_weights(nodes, start.level.rho, t.rho, clock)
    return transfer(start.z, _mixed(estimates, weights), start.level, t)


def _mixed(estimates: Sequence[Estimate], weights: Sequence[float]) -> Tensor:
    """Σ_j w_j ε_j of the first estimates."""
    mixed = weights[0] * estimates[0].eps
    for weight, estimate in zip(weights[1:], estimates[1:], strict=False):
        mixed = mixed + weight * estimate.eps
    return mixed


@cache
def _mean_weights(nodes: tuple[float, ...], start: float, end: float, clock: str) -> list[float]:
    """The weight of each node in the mean of the polynomial over ρ from start to end.

    The integral is Gauss-Legendre quadrature in u, where ρ = end + (start − end) u⁴. This also
    weakens the singularity of the logarithm at ρ = 0.
    """
    time = CLOCKS[clock]
    at = [time(node) for node in nodes]
    weights = [0.0] * len(nodes)
    for u, share in gauss_legendre():
        here = time(end + (start - end) * u**4)
        for j, own in enumerate(at):
            basis = math.prod((here - a) / (own - a) for i, a in enumerate(at) if i != j)
            weights[j] += 4 * u**3 * share * basis
    return weights


def check_order(order: int, key: str = "sampler.rule.order") -> None:
    """Raises UserError, naming the key, for an order outside 1 to 4."""
    if not 1 <= order <= MOST_ORDER:
        raise UserError(f"{key}={order} must be 1, 2, 3 or 4")
