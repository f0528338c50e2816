"""Rex: every explicit Runge-Kutta method as a coupling, for the ODE and for the SDE.

In the coordinate Z = z/w and a clock ς the equation of sampling has no linear term (Lawson):

    equation   prediction   w       ς       k
    ODE        noise        α       σ/α     ε̂      dZ = k dς
    ODE        data         σ       α/σ     x̂      dZ = k dς
    SDE        data         σ²/α    α²/σ²   x̂      dZ = k dς + dB

The SDE is the reverse-time SDE with the same marginals, of noise scale 1: for u = z/α and ρ = σ/α,
du = 2 ε̂ dρ + noise of variance |dρ²|. B is a standard Brownian motion in the clock ς.

There is no SDE with noise prediction: it shrinks Z by ρ_t²/ρ_s², and the difference of two coupled
states grows by the inverse of what their mean shrinks by. With data prediction w shrinks instead.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdia_exp.errors import UserError, nearest
from bdia_exp.samplers.core import Denoiser, Estimate, Level
from bdia_exp.samplers.coupling import Pair
from bdia_exp.samplers.rules import rho_of
from bdia_exp.samplers.schedules import edm
from bdia_exp.samplers.tableaus import STOCHASTIC, TABLEAUS, Tableau


class Form(NamedTuple):
    """Lawson's coordinates, as functions of ρ = σ/α: w = α · scale(ρ), ς = clock(ρ)."""

    scale: Callable[[float], float]
    clock: Callable[[float], float]
    rho: Callable[[float], float]  # of a clock
    slope: Callable[[Estimate], Tensor]

    def weight(self, level: Level) -> float:
        return float(level.alpha * self.scale(rho_of(level)))


FORMS = {
    "noise": Form(lambda rho: 1.0, lambda rho: rho, lambda clock: clock, lambda at: at.eps),
    "data": Form(lambda rho: rho, lambda rho: 1 / rho, lambda clock: 1 / clock, lambda at: at.x),
}
SDE = Form(lambda rho: rho**2, lambda rho: rho**-2, lambda clock: clock**-0.5, lambda at: at.x)

Way = Callable[[Tensor], Tensor]
"""From a state to its Ψ."""

Noise = tuple[Tensor, Tensor]
"""Of one step, for each image: the Brownian increment W and its space-time Lévy area H, [B, …]."""


def psi(
    model: Denoiser,
    u: Tensor,
    s: Level,
    t: Level,
    form: Form,
    tableau: Tableau,
    noise: Noise | None = None,
) -> Tensor:
    """Ψ(s → t | u): the change of u/w in a step from s to t [REX Psi].

    u and the result are [B, …]. The stages at s and t are evaluated there. A stage between them is
    evaluated at the level of EDM, (1, ρ), of its clock: every model reads the time of this ρ in its
    own schedule.
    """
    start = form.clock(s.rho)
    h = form.clock(t.rho) - start
    k: list[Tensor] = []
    for c, row in zip(tableau.c, tableau.a, strict=True):
        level = s if c == 0 else t if c == 1 else edm(form.rho(start + c * h))
        state = u / form.weight(s) + h * _sum(row, k)
        if noise:
            state = state + c * noise[0] + tableau.area * noise[1]
        k.append(form.slope(model(form.weight(level) * state, level)))
    step = h * _sum(tableau.b, k)
    return step + noise[0] if noise else step


def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Any:
    """Σ weight · slope; the number 0 if there is none."""
    return sum(weight * k for weight, k in zip(weights, slopes, strict=True) if weight)


def increments(seeds: Sequence[int], place: int, length: float, like: Tensor) -> Noise:
    """W and H of a step whose clock runs by `length`, of the shape [B, …] of `like`.

    W has the variance |length|, H |length|/12. They are drawn again from (seed, place) at every
    call, on the CPU in float64, by a generator of each image's own. So nothing is stored, and no
    image depends on its batch.
    """

    def draw(seed: int, shape: torch.Size) -> Tensor:
        name = hashlib.sha256(f"rex {seed} {place}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(name[:4], "big"))
        return torch.randn(2, *shape, generator=rng, dtype=torch.float64)

    drawn = [draw(seed, row.shape) for seed, row in zip(seeds, like, strict=True)]
    w, h = (abs(length) ** 0.5 * torch.stack(drawn, 1)).to(like)
    return w, h / 12**0.5


@dataclass(frozen=True)
class Rex:
    """Rex: a Runge-Kutta method in Lawson's coordinates, made reversible by McCallum and Foster's
    coupling [REX forward], undone by [REX backward]. Two evaluations a stage and step.

    `zeta` pulls the first state towards the second. With `sde` ("em" or "shark") the reverse-time
    SDE is sampled [REX SDE]: row k has the Brownian path of seeds[k], or of k if there are none.
    A step to or from a clean level (σ = 0, where clocks are infinite) is of the ODE: Euler's with
    noise prediction, which is undone like every other.

    Raises UserError for unknown names, unless 0 < ζ ≤ 1, at pure noise and for matrices.
    """

    tableau: str = "euler"
    predicts: str = "noise"
    zeta: float = 0.999
    sde: str | None = None
    seeds: tuple[int, ...] = ()

    def __post_init__(self):
        for key, known in (("tableau", TABLEAUS), ("predicts", FORMS), ("sde", STOCHASTIC)):
            given = getattr(self, key)
            if given not in known and not (key == "sde" and given is None):
                raise UserError(f"sampler.{key}={given!r} is unknown{nearest(given, known)}")
        if self.sde and self.tableau != "euler":
            raise UserError(
                f"sampler.sde={self.sde} has a tableau of its own: leave sampler.tableau out"
            )
        if self.sde and self.predicts != "data":
            raise UserError(f"sampler.sde={self.sde} needs sampler.predicts=data")
        if not 0 < self.zeta <= 1:
            raise UserError(
                f"sampler.zeta={self.zeta} must be more than 0 and at most 1; Rex uses 0.999"
            )

    @property
    def amplification(self) -> float:
        return 1 / self.zeta

    def step(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        x, y = pair
        there, back, (w_s, w_t) = self._ways(model, s, t, place, x)
        x = (w_t / w_s) * (self.zeta * x + (1 - self.zeta) * y) + w_t * there(y)
        y = (w_t / w_s) * y - w_t * back(x)
        return x, y

    def undo(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        x, y = pair
        there, back, (w_s, w_t) = self._ways(model, s, t, place, x)
        y = (w_s / w_t) * y + w_s * back(x)
        x = (w_s / w_t) * x / self.zeta + (1 - 1 / self.zeta) * y - (w_s / self.zeta) * there(y)
        return x, y

    def _ways(
        self, model: Denoiser, s: Level, t: Level, place: int, like: Tensor
    ) -> tuple[Way, Way, tuple[float, float]]:
        """Ψ(s → t | ·) and Ψ(t → s | ·), on the same Brownian path, and the weights at s and t."""
        if s.is_noise or t.is_noise:
            raise UserError(
                "sampler=rex cannot step from pure noise (alpha = 0): choose a grid that starts "
                "with alpha above 0"
            )
        clean = s.sigma == 0 or t.sigma == 0
        sde = None if clean else self.sde
        form = SDE if sde else FORMS["noise" if clean else self.predicts]
        tableau = STOCHASTIC[sde] if sde else TABLEAUS["euler" if clean else self.tableau]
        forward = backward = None
        if sde:
            length = form.clock(rho_of(t)) - form.clock(rho_of(s))
            w, h = increments(self.seeds or range(len(like)), place, length, like)
            forward, backward = (w, h), (-w, h)  # a path run backwards: −W, and the same H

        return (
            lambda u: psi(model, u, s, t, form, tableau, forward),
            lambda u: psi(model, u, t, s, form, tableau, backward),
            (form.weight(s), form.weight(t)),
        )
