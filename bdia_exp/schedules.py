"""Schedules: from a network's time to its noise level."""

from collections.abc import Sequence

import torch

from bdia_exp.core import CLEAN, Level
from bdia_exp.errors import UserError


class DiscreteVP:
    """A variance-preserving schedule of T discrete times k = 0 … T−1 [BDIA 1].

    `abar[k]` is ᾱ_k = Π_{j≤k} (1 − β_j). `schedule(k)` is the level (√ᾱ_k, √(1−ᾱ_k), k).
    """

    def __init__(self, abar: Sequence[float]):
        self.abar = tuple(abar)

    def __len__(self) -> int:
        return len(self.abar)

    def __call__(self, k: int, *, shift: int = 0) -> Level:
        """The level that the network calls k, with ᾱ read `shift` places further on.

        Past the clean end of the table (k + shift < 0) lies `CLEAN`; past the other, UserError.
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


def linear_vp(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> DiscreteVP:
    """DDPM's schedule, β linear in k. β is rounded to float32 as DDIM and PNDM do it."""
    betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64).float()
    return DiscreteVP((1 - betas.double()).cumprod(0).tolist())


def edm(sigma: float) -> Level:
    """EDM's schedule: α ≡ 1, and time is σ itself [EDM Table 1]."""
    return Level(1.0, sigma, sigma)
