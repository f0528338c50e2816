"""Linear diffusions du = F u dt + G dw: their levels, and the matrices of gDDIM.

Data u_0 become u_t = Ψ(t, 0) u_0 + R_t ε, so the level of time t is (Ψ(t, 0), R_t), and `transfer`
is gDDIM's step. R_t is the root of the noise's covariance Σ_t for which ε is constant along the
probability flow of Gaussian data [gDDIM 14-15]. A `LinearLevel` knows its diffusion: samplers that
need more than the level, such as integrals over time, ask it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from typing import ClassVar

import torch
from torch import Tensor

from bdia_exp.errors import UserError, nearest
from bdia_exp.samplers.core import Coefficient, Level
from bdia_exp.samplers.mix import Mix
from bdia_exp.samplers.quadrature import (
    PANEL,
    SCALE,
    between,
    inside,
    lagrange,
    magnus,
    panels,
)
from bdia_exp.samplers.schedules import ANY

ROOTS = ("R", "L")
"""The roots K of Σ = K Kᵀ: gDDIM's R, and the Cholesky factor L."""
MAGNUS_PANEL = 1 / 256


class Diffusion(ABC):
    """A linear diffusion on times 0 (data) to T: a `Schedule` without a scalar σ/α."""

    T: ClassVar[float] = 1.0
    supported: ClassVar[tuple[float, float]] = ANY
    rho_max: ClassVar[float] = math.inf

    def level(self, t: float) -> "LinearLevel":
        """The level (Ψ(t, 0), R_t, t). Raises UserError for a time outside 0 to T."""
        if not 0 <= t <= self.T:
            raise UserError(f"this diffusion has times from 0 to {self.T:g}, not {t}")
        return self._level(t)

    __call__ = level

    def at(self, rho: float) -> Level:
        """Refused: its noise is a matrix. Raises UserError."""
        raise UserError("these levels have no sigma: choose grid=quadratic_time")

    @abstractmethod
    def _level(self, t: float) -> "LinearLevel": ...

    @abstractmethod
    def drift(self, t: float) -> tuple[Coefficient, Coefficient]:
        """F, and the symmetric G, at a time."""

    @abstractmethod
    def weights(
        self, s: float, t: float, nodes: tuple[float, ...], K: str = "R"
    ) -> tuple[Coefficient, ...]:
        """C_j = ∫_s^t ½ Ψ(t, τ) G Gᵀ K_τ⁻ᵀ ℓ_j(τ) dτ, ℓ_j the Lagrange polynomials of the nodes.

        [gDDIM 17, 37, 42].
        """

    def in_root(self, t: float, K: str) -> Coefficient:
        """K_t⁻¹ R_t: from the noise estimate that belongs to R to that of K."""
        return 1.0

    @abstractmethod
    def kept(self, s: float, t: float, lam: float) -> tuple[Coefficient, Coefficient]:
        """X, N with Ψ̂(t, s) = R_t X R_s⁻¹ and P_st = R_t N Nᵀ R_tᵀ [gDDIM 20-21].

        X is the share of the noise that a stochastic step keeps, and N Nᵀ = 1 − X Xᵀ what it
        draws. λ = 0: X = 1, N = 0.
        """


class LinearLevel(Level):
    """A level of a linear diffusion."""

    diffusion: Diffusion

    @classmethod
    def of(
        cls, diffusion: Diffusion, alpha: Coefficient, sigma: Coefficient, t: float
    ) -> "LinearLevel":
        level = cls(alpha, sigma, t)
        level.diffusion = diffusion
        return level


def diffusion_of(level: Level) -> Diffusion:
    """The diffusion of a level. Raises UserError if it has none."""
    if isinstance(level, LinearLevel):
        return level.diffusion
    raise UserError(
        "this sampler needs the levels of a diffusion: choose diffusion=cld with "
        "grid=quadratic_time, or sampler=deis_tab"
    )


def check_root(K: str, key: str) -> None:
    """Raises UserError, naming the key, for an unknown root."""
    if K not in ROOTS:
        raise UserError(f"{key}={K!r} is unknown{nearest(K, ROOTS)}")


@dataclass(frozen=True)
class CLD(Diffusion):
    """Critically-damped Langevin diffusion of pairs (x, v) [gDDIM 10]; data have v = 0.

    F = β [[0, M⁻¹], [−1, −Γ M⁻¹]], G Gᵀ = diag(0, 2Γβ), Σ_0 = diag(eps, γ M + eps): v starts with
    the variance γ M, as in hybrid score matching [gDDIM 23]. All matrices are float64 [2, 2].

    Raises UserError unless the numbers are 1e-12 to 1e12, and Γ² M⁻¹ = 4, critical damping.
    """

    beta: float = 4.0
    M_inv: float = 4.0
    Gamma: float = 1.0
    gamma: float = 0.04
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not all(1e-12 <= number <= 1e12 for number in vars(self).values()):
            raise UserError("diffusion: beta, M_inv, Gamma, gamma and eps must be 1e-12 to 1e12")
        if not math.isclose(self.Gamma**2 * self.M_inv, 4):
            raise UserError(
                f"diffusion.Gamma={self.Gamma:g} is not critical damping: it must be 2/√M_inv = "
                f"{2 / math.sqrt(self.M_inv):g}"
            )

    # -- in closed form --

    def Psi(self, t: float, s: float = 0.0) -> Tensor:  # noqa: N802
        """Ψ(t, s): dΨ/dt = F Ψ, Ψ(s, s) = 1 [gDDIM 32]."""
        return self._psi(_float64(t - s))

    def Sigma(self, t: float) -> Tensor:  # noqa: N802
        """Σ_t, the covariance of u_t for one clean image [gDDIM 44]."""
        return self._sigma(_float64(t))

    def L(self, t: float) -> Tensor:  # noqa: N802
        """The Cholesky factor of Σ_t."""
        return self._root(_float64(t), "L")

    def R(self, t: float) -> Tensor:  # noqa: N802
        """R_t = L_t Rot(−θ_t): R Rᵀ = Σ and R' = (F + ½ G Gᵀ Σ⁻¹) R [gDDIM 15]."""
        return self._root(_float64(t), "R")

    def Psi_hat(self, t: float, s: float, lam: float) -> Tensor:  # noqa: N802
        """Ψ̂(t, s): dΨ̂/dt = (F + ½(1 + λ²) G Gᵀ Σ⁻¹) Ψ̂, Ψ̂(s, s) = 1 [gDDIM 74]."""
        return self.R(t) @ self._kept(s, t, lam) @ torch.linalg.inv(self.R(s))

    def P(self, t: float, s: float, lam: float) -> Tensor:  # noqa: N802
        """The covariance P_st = Σ_t − Ψ̂ Σ_s Ψ̂ᵀ of a stochastic step [gDDIM 21]."""
        kept = self._kept(s, t, lam)
        return self.R(t) @ (torch.eye(2, dtype=torch.float64) - kept @ kept.mT) @ self.R(t).mT

    def sigma_eff(self, t: float) -> float:
        """The σ of the best observation of a clean pixel in a pair (x, v): see `observation`."""
        return self.observation(t)[1]

    @cache  # noqa: B019
    def observation(self, t: float) -> tuple[tuple[float, float], float]:
        """(w_x, w_v) and σ with w_x x + w_v v = x_0 + σ N(0, 1), a sufficient statistic for x_0."""
        signal = self.Psi(t)[:, 0]
        weights = torch.linalg.solve(self.Sigma(t), signal)
        precision = float(signal @ weights)
        w_x, w_v = (weights / precision).tolist()
        return (w_x, w_v), math.pow(precision, -0.5)

    @cache  # noqa: B019
    def _level(self, t: float) -> LinearLevel:
        return LinearLevel.of(self, Mix.of(self.Psi(t)), Mix.of(self.R(t)), t)

    def drift(self, t: float) -> tuple[Mix, Mix]:
        b, m = self.beta, self.M_inv
        G = Mix(0.0, 0.0, 0.0, math.sqrt(2 * self.Gamma * b))
        return Mix(0.0, b * m, -b, -self.Gamma * b * m), G

    @cache  # noqa: B019
    def backwards(self, elapsed: float) -> tuple[Mix, Mix]:
        """Time reversed at rest, where x and v are N(0, 1) and N(0, M): propagator, root of noise.

        Reversal changes the sign of v's effect on x. For SSCS.
        """
        flip = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
        psi, noise = self._psi(_float64(elapsed)), self._noise(_float64(elapsed))
        root = torch.linalg.cholesky(flip @ noise @ flip)
        return Mix.of(flip @ psi @ flip), Mix.of(root)

    @cache  # noqa: B019
    def weights(
        self, s: float, t: float, nodes: tuple[float, ...], K: str = "R"
    ) -> tuple[Mix, ...]:
        times, shares = between(s, t)
        noise = torch.zeros(2, 2, dtype=torch.float64)
        noise[1, 1] = self.Gamma * self.beta  # ½ G Gᵀ
        slopes = self._psi(t - times) @ noise @ torch.linalg.inv(self._root(times, K)).mT
        found = torch.einsum("jn,n,nab->jab", lagrange(nodes, times), shares, slopes)
        return tuple(map(Mix.of, found))

    @cache  # noqa: B019
    def in_root(self, t: float, K: str) -> Coefficient:
        return Mix.of(torch.linalg.solve(self.L(t), self.R(t))) if K == "L" else 1.0

    @cache  # noqa: B019
    def kept(self, s: float, t: float, lam: float) -> tuple[Mix, Mix]:
        kept = self._kept(s, t, lam)
        shares, vectors = torch.linalg.eigh(torch.eye(2, dtype=torch.float64) - kept @ kept.mT)
        drawn = vectors @ torch.diag(shares.clamp(min=0).sqrt()) @ vectors.mT
        return Mix.of(kept), Mix.of(drawn)

    # -- for many times at once: [n] → [n, 2, 2] --

    def _psi(self, elapsed: Tensor) -> Tensor:
        b, root = self.beta * elapsed, math.sqrt(self.M_inv)
        rows = [[1 + root * b, self.M_inv * b], [-b, 1 - root * b]]
        return (-root * b).exp()[..., None, None] * _matrix(rows)

    def _sigma(self, t: Tensor) -> Tensor:
        start = torch.tensor([self.eps, self.gamma / self.M_inv + self.eps], dtype=torch.float64)
        return self._psi(t) @ torch.diag(start) @ self._psi(t).mT + self._noise(t)

    def _noise(self, elapsed: Tensor) -> Tensor:
        """The covariance that G dw adds."""
        root = math.sqrt(self.M_inv)
        y = 2 * root * self.beta * elapsed
        p, q = torch.special.gammainc(torch.full_like(y, 3.0), y), (-y).exp()
        cross = q * y**2 / (2 * root)
        return _matrix([[p, cross], [cross, (p + 2 * y * q) / self.M_inv]])

    def _root(self, t: Tensor, K: str) -> Tensor:
        sigma = self._sigma(t)
        low, cross = sigma[..., 0, 0].sqrt(), sigma[..., 0, 1]
        zero = torch.zeros_like(low)
        lower = _matrix([[low, zero], [cross / low, _det(sigma).sqrt() / low]])
        if K == "L":
            return lower
        cos, sin = self.angle(t).cos(), self.angle(t).sin()
        return lower @ _matrix([[cos, sin], [-sin, cos]])

    def angle(self, t: Tensor) -> Tensor:
        """θ_t = ∫_0^t β M⁻¹ √det Σ / Σ_xx dτ: by how much R_t is turned against L_t.

        R = L Q with a rotation Q; of [gDDIM 15], the entry xv of L⁻¹ (F + ½ G Gᵀ Σ⁻¹) L is θ'.
        """
        w = (t / SCALE).asinh()
        panels = (w / PANEL).floor().clamp(max=len(self._angles) - 1)
        return self._angles[panels.long()] + self._turn(panels * PANEL, w)

    @cached_property
    def _angles(self) -> Tensor:
        """θ at the edges of the panels."""
        edges = PANEL * torch.arange(math.ceil(math.asinh(self.T / SCALE) / PANEL) + 1.0).double()
        turns = self._turn(edges[:-1], edges[1:])
        return torch.cat([torch.zeros(1, dtype=torch.float64), turns.cumsum(0)])

    def _turn(self, start: Tensor, end: Tensor) -> Tensor:
        """∫ θ' dτ over panels in w."""
        times, shares = inside(start, end, 32)
        sigma = self._sigma(times)
        rate = self.beta * self.M_inv * _det(sigma).sqrt() / sigma[..., 0, 0]
        return (rate * shares).sum(-1)

    def _kept(self, s: float, t: float, lam: float) -> Tensor:
        """X of `kept`: X' = ½ λ² R⁻¹ G Gᵀ R⁻ᵀ X, X = 1 at s; Magnus's series of order 6."""
        edges = panels(s, t, MAGNUS_PANEL)
        times, shares = inside(edges[:-1], edges[1:], 3)
        sigma, angle = self._sigma(times), self.angle(times)
        normal = torch.stack([-angle.sin(), angle.cos()], -1)
        size = lam**2 * self.Gamma * self.beta * sigma[..., 0, 0] / _det(sigma)
        rates = size[..., None, None] * normal[..., :, None] * normal[..., None, :]
        steps = magnus(rates, shares)
        return reduce(torch.matmul, reversed(steps), torch.eye(2, dtype=torch.float64))


def _det(sigma: Tensor) -> Tensor:
    return sigma[..., 0, 0] * sigma[..., 1, 1] - sigma[..., 0, 1] ** 2


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    """A tensor [..., 2, 2] of its entries."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _float64(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)
