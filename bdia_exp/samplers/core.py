"""Levels, estimates and the one formula that moves between levels. READ FIRST.

A network evaluation at level s = (α_s, σ_s) splits the state, z = α_s x̂ + σ_s ε̂. Hold the split
fixed and let the level vary: a straight line. `transfer` walks along it. DDIM forward, DDIM
backward, the clean estimate x̂ and EDM's Euler step are this one function; VP and EDM models differ
only in the numbers inside `Level`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor


class Level(NamedTuple):
    """A noise level: z = alpha · x + sigma · ε, and the time by which its network knows it.

    VP models: (√ᾱ_k, √(1−ᾱ_k), k). EDM models: (1, σ, σ).
    """

    alpha: float
    sigma: float
    time: float

    @property
    def rho(self) -> float:
        """Noise over signal, σ/α: what σ is after the state is divided by α."""
        return self.sigma / self.alpha


CLEAN = Level(1.0, 0.0, 0.0)


def transfer(z: Tensor, eps: Tensor, s: Level, t: Level) -> Tensor:
    """The state z at level s, moved to level t with its noise estimate held fixed.

    (α_t/α_s) z + (σ_t − (α_t/α_s) σ_s) ε  [BDIA 6-7, 23-24]; for α ≡ 1, EDM's Euler step
    [EDM Alg. 1]. z and eps have one shape, any; so has the result.
    """
    a = t.alpha / s.alpha
    return a * z + (t.sigma - a * s.sigma) * eps


class Estimate(NamedTuple):
    """A network evaluation: the state z at `level`, split by the noise estimate eps."""

    level: Level
    z: Tensor
    eps: Tensor

    def at(self, level: Level) -> Tensor:
        """The state at another level, along this estimate's line."""
        return transfer(self.z, self.eps, self.level, level)

    @property
    def x(self) -> Tensor:
        """The clean estimate x̂ = (z − σ ε̂)/α."""
        return self.at(CLEAN)

    @classmethod
    def from_x(cls, level: Level, z: Tensor, x: Tensor) -> "Estimate":
        """From a network that predicts the clean image: ε̂ = (z − α x̂)/σ."""
        return cls(level, z, (z - level.alpha * x) / level.sigma)

    @classmethod
    def from_v(cls, level: Level, z: Tensor, v: Tensor) -> "Estimate":
        """From a network that predicts v = α ε − σ x on a VP level (α² + σ² = 1)."""
        return cls(level, z, level.alpha * v + level.sigma * z)


Grid = tuple[Level, ...]
"""Levels from noise to data; `grid[::-1]` goes back. N steps have N + 1 levels."""

Denoiser = Callable[[Tensor, Level], Estimate]
"""A network with its condition and guidance bound: state [B, C, H, W] and level → split."""

Rule = Callable[[Sequence[Estimate], Level], Tensor]
"""All evaluations so far, newest last, and the level to reach → the next state."""

Sampler = Callable[[Denoiser, Tensor, Grid], Iterator[Tensor]]
"""A generator of states, one for each level of the grid after the first."""


class Counted:
    """A denoiser that counts its evaluations: the only source of every NFE that is reported."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.nfe = denoiser, 0

    def __call__(self, z: Tensor, level: Level) -> Estimate:
        self.nfe += 1
        return self.denoiser(z, level)
