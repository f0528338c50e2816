"""Schedules: from a network's time to its noise level, and what kind of level it is."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import CLEAN, Level

ANY = (0.0, math.inf)


class Schedule(Protocol):
    """The levels for which a network was trained, by time or by σ/α."""

    @property
    def supported(self) -> tuple[float, float]:
        """The least and the greatest σ/α that the network supports; grids of σ/α keep to it."""
        ...

    @property
    def rho_max(self) -> float:
        """The greatest σ/α; ∞ for a schedule that starts at pure noise."""
        ...

    def __call__(self, time: int, /) -> Level:
        """The level at a time of the network; a continuous schedule takes any number."""
        ...

    def at(self, rho: float) -> Level:
        """The level with σ/α = rho. Raises UserError beyond `rho_max`."""
        ...


class DiscreteVP:
    """A variance-preserving schedule of T discrete times k = 0 … T−1 [BDIA 1].

    `abar[k]` is ᾱ_k = Π_{j≤k} (1 − β_j). `schedule(k)` is the level (√ᾱ_k, √(1−ᾱ_k), k).
    `supported` is the range of σ/α that the network itself states; EDM's networks can have one.
    """

    def __init__(self, abar: Sequence[float], supported: tuple[float, float] = ANY):
        self.abar, self.supported = tuple(abar), supported

    def __len__(self) -> int:
        return len(self.abar)

    def __call__(self, k: int, *, shift: int = 0) -> Level:
        """The level for the network's time k, with ᾱ of the time k + shift.

        If k + shift < 0 it is `CLEAN`. Raises UserError if k + shift is not below T.
        """
        if k + shift < 0:
            return CLEAN
        if k + shift >= len(self):
            raise UserError(
                f"the schedule ends at time {len(self) - 1}, this grid needs {k + shift}: use "
                "fewer steps or grid.pairing=ddim"
            )
        abar = self.abar[k + shift]
        return Level(abar**0.5, (1 - abar) ** 0.5, float(max(k, 0)))

    def between(self, time: float) -> Level:
        """The level at a fractional time; log α is linear between the times of the table.

        DPM-Solver reads a discrete schedule in this way. Raises UserError outside the table.
        """
        if not 0 <= time <= len(self) - 1:
            raise UserError(f"the schedule has times 0 to {len(self) - 1}, this grid needs {time}")
        before = min(int(time), len(self) - 2)
        low, high = self.abar[before : before + 2]
        abar = low * (high / low) ** (time - before)
        return Level(abar**0.5, (1 - abar) ** 0.5, time)

    @cached_property
    def rhos(self) -> list[float]:
        """σ/α at every time."""
        return [((1 - abar) / abar) ** 0.5 for abar in self.abar]

    @property
    def rho_max(self) -> float:
        return self.rhos[-1]

    def at(self, rho: float) -> Level:
        """The level with σ/α = rho, at a fractional time: linear in log σ/α between the times.

        Below the σ/α of the first time, the time is 0. Raises UserError beyond the last one.
        """
        if rho > self.rho_max:
            raise UserError(
                f"this network was trained for noise up to sigma={self.rho_max:.4g}, and the grid "
                f"has {rho:.4g}: set grid.sigma_max={self.rho_max:.4g} or less, or grid=quad"
            )
        after = bisect_right(self.rhos, rho)
        if after == 0:
            time = 0.0
        elif after == len(self):
            time = float(after - 1)
        else:
            low, high = self.rhos[after - 1], self.rhos[after]
            time = after - 1 + math.log(rho / low) / math.log(high / low)
        return vp(rho, time)


def linear_vp(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> DiscreteVP:
    """DDPM's schedule, β linear in k. β is rounded to float32 as in DDIM's and PNDM's code."""
    betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64).float()
    return DiscreteVP((1 - betas.double()).cumprod(0).tolist())


def scaled_linear_vp(
    beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000
) -> DiscreteVP:
    """Stable Diffusion's schedule, √β linear in k; diffusers calls it "scaled_linear"."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64)
    return DiscreteVP((1 - roots**2).cumprod(0).tolist())


def linear_vp_time(rho: float, beta_min: float = 0.1, beta_max: float = 20.0) -> float:
    """The time in [0, 1], or beyond, at which the continuous form of `linear_vp` has σ/α = rho.

    Its log ᾱ is −(β_min t + ½ (β_max − β_min) t²).
    """
    slope = beta_max - beta_min
    return (math.sqrt(beta_min**2 + 2 * slope * math.log1p(rho**2)) - beta_min) / slope


def vp(rho: float, time: float) -> Level:
    """The variance-preserving level (α² + σ² = 1) with σ/α = rho."""
    alpha = 1 / math.hypot(1, rho)
    return Level(alpha, alpha * rho, time)


def edm(sigma: float) -> Level:
    """EDM's schedule: α ≡ 1, and time is σ itself [EDM Table 1]."""
    return Level(1.0, sigma, sigma)


class Rectified:
    """Rectified flow: the straight line z = (1 − t) x + t ε, from t = 1, noise, to t = 0 [RF 1]."""

    rho_max = math.inf
    supported = ANY

    def __call__(self, time: float) -> Level:
        """The level (1 − t, t, t). Raises UserError outside 0 ≤ t ≤ 1."""
        if not 0 <= time <= 1:
            raise UserError(f"rectified flow has times from 0 to 1, not {time}")
        return Level(1 - time, time, time)

    def at(self, rho: float) -> Level:
        """The level with σ/α = rho; ∞ is pure noise."""
        return self(1.0 if rho == math.inf else rho / (1 + rho))


rectified = Rectified()


def is_vp(level: Level) -> bool:
    """Whether α² + σ² = 1, up to rounding: a variance-preserving level. `CLEAN` is one."""
    return level.is_scalar and abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12


def is_edm(level: Level) -> bool:
    """Whether it is a level of EDM's schedule. `CLEAN` is one."""
    return level.is_scalar and level == edm(level.sigma)
