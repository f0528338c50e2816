"""Linear diffusions without mixing: VP in continuous time, and blurring.

On them gDDIM is what it generalises: DDIM, DEIS and DDIM's η, on numbers or a number a frequency.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bdia_exp.samplers.core import Coefficient
from bdia_exp.samplers.linear import Diffusion, LinearLevel
from bdia_exp.samplers.quadrature import between, lagrange


class Diagonal(Diffusion):
    """A diffusion whose R is the scalar √(1 − ᾱ), and so commutes with Ψ."""

    @cache  # noqa: B019
    def weights(
        self, s: float, t: float, nodes: tuple[float, ...], K: str = "R"
    ) -> tuple[Coefficient, ...]:
        times, shares = between(s, t)
        basis = (lagrange(nodes, times) * shares).T.tolist()
        found = [0.0] * len(nodes)
        for time, row in zip(times.tolist(), basis, strict=True):
            level, (_, G) = self.level(time), self.drift(time)
            slope = G * G / (2 * level.sigma * level.alpha)
            found = [total + share * slope for total, share in zip(found, row, strict=True)]
        return tuple(self.level(t).alpha * total for total in found)

    def kept(self, s: float, t: float, lam: float) -> tuple[Coefficient, Coefficient]:
        """X = (ρ_t/ρ_s)^(λ²), from [gDDIM 57]."""
        kept = (self.level(t).rho / self.level(s).rho) ** lam**2
        return kept, (1 - kept**2) ** 0.5


@dataclass(frozen=True)
class VP(Diagonal):
    """The VP diffusion [gDDIM 8] with β linear: log ᾱ = −(β_min t + ½ (β_max − β_min) t²)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _level(self, t: float) -> LinearLevel:
        log = -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2)
        return LinearLevel.of(self, math.exp(log / 2), math.sqrt(-math.expm1(log)), t)

    def drift(self, t: float) -> tuple[float, float]:
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        return -beta / 2, math.sqrt(beta)


@dataclass(frozen=True)
class Blur(Diagonal):
    """Blurring diffusion, on the DCT coefficients [B, C, H, W] of images (arXiv 2209.05557).

    Frequency k has α_k = √ᾱ ((1 − m) e^(−λ_k τ) + m) with τ = σ_B²/2, σ_B = blur sin²(πt/2) and
    λ_k = π² (k₁²/H² + k₂²/W²); all have σ = √(1 − ᾱ), ᾱ = cos²(π/2 (t + 0.004)/1.008).
    """

    height: int
    width: int
    blur: float = 10.0
    least: float = 0.001

    @property
    def _rates(self) -> Tensor:
        """λ_k, [H, W]."""
        rows = torch.arange(self.height, dtype=torch.float64) / self.height
        columns = torch.arange(self.width, dtype=torch.float64) / self.width
        return math.pi**2 * (rows[:, None] ** 2 + columns**2)

    def _level(self, t: float) -> LinearLevel:
        angle = math.pi / 2 * (t + 0.004) / 1.008
        tau = (self.blur * math.sin(math.pi * t / 2) ** 2) ** 2 / 2
        faded = (1 - self.least) * (-self._rates * tau).exp() + self.least
        return LinearLevel.of(self, math.cos(angle) * faded, math.sin(angle), t)

    def drift(self, t: float) -> tuple[Tensor, Tensor]:
        """F = α̇/α, and G² = dσ²/dt − 2 F σ², as α and σ require."""
        angle, speed = math.pi / 2 * (t + 0.004) / 1.008, math.pi / 2 / 1.008
        width = self.blur * math.sin(math.pi * t / 2) ** 2
        tau_speed = (
            width * self.blur * math.pi * math.sin(math.pi * t / 2) * math.cos(math.pi * t / 2)
        )
        fading = (1 - self.least) * (-self._rates * width**2 / 2).exp()
        F = -speed * math.tan(angle) - self._rates * tau_speed * fading / (fading + self.least)
        variance_speed = 2 * math.sin(angle) * math.cos(angle) * speed
        return F, (variance_speed - 2 * F * math.sin(angle) ** 2).sqrt()
