"""Levels, estimates and the one formula that moves between levels. READ FIRST.

A network evaluation at level s = (α_s, σ_s) splits the state: z = α_s x̂ + σ_s ε̂. If x̂ and ε̂ are
fixed and the level changes, z moves on a straight line, and `transfer` computes its points. DDIM
forward, DDIM backward, the clean estimate x̂ and EDM's Euler step are this one function; the model
families (VP, EDM, rectified flow, matrix levels) differ only in the coefficients inside `Level`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from bdia_exp.errors import UserError

Coefficient: TypeAlias = Any
"""A number, or a linear map of states with the same operators: a 2×2 matrix over a pair (x, v), or
one number per frequency. For coefficients a, b, a state z and a number c, the class must define

    a * z    a acts on z               a * b, a − b    a linear map again; so have c * a, c − a, …
    z / a    a⁻¹ z                     a / b           a b⁻¹, in this order; c / a is c a⁻¹
"""


class Level(NamedTuple):
    """A noise level: z = alpha · x + sigma · ε, and the time that its network is given.

    VP models: (√ᾱ_k, √(1−ᾱ_k), k). EDM models: (1, σ, σ). Rectified flow: (1 − t, t, t).
    """

    alpha: Coefficient
    sigma: Coefficient
    time: float

    @property
    def rho(self) -> Any:
        """Noise over signal, α⁻¹σ: the σ of the state divided by α. ∞ at pure noise."""
        if not isinstance(self.alpha, (int, float)):
            return 1 / self.alpha * self.sigma
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def is_scalar(self) -> bool:
        """Whether both coefficients are numbers."""
        return isinstance(self.alpha, (int, float)) and isinstance(self.sigma, (int, float))

    @property
    def is_noise(self) -> bool:
        """Whether α = 0: a state at this level has no information about the clean image."""
        return isinstance(self.alpha, (int, float)) and self.alpha == 0


CLEAN = Level(1.0, 0.0, 0.0)


def transfer(z: Tensor, eps: Tensor, s: Level, t: Level) -> Tensor:
    """The state z at level s, moved to level t with its noise estimate held fixed.

    (α_t/α_s) z + (σ_t − (α_t/α_s) σ_s) ε  [BDIA 6-7, 23-24]; for α ≡ 1, EDM's Euler step
    [EDM Alg. 1]; with matrices, gDDIM's step [gDDIM 16]. z, eps and the result have the same
    shape, which may be any. Raises UserError at α_s = 0, where x̂ is needed too: `Estimate.at`.
    """
    if s.is_noise:
        raise UserError(
            "this sampler cannot step from pure noise (alpha = 0): choose sampler=ddim, bdia_ddim, "
            "dpmpp_2m or cbdia, or a grid that starts with alpha above 0"
        )
    a = t.alpha / s.alpha
    return a * z + (t.sigma - a * s.sigma) * eps


class Estimate(NamedTuple):
    """A network evaluation: the state z at `level`, split by the noise estimate eps.

    `clean` is x̂. It is used only at α = 0; at other levels z and eps determine x̂.
    """

    level: Level
    z: Tensor
    eps: Tensor
    clean: Tensor | None = None

    def at(self, level: Level) -> Tensor:
        """The state at another level, along this estimate's line: α x̂ + σ ε̂."""
        if self.level.is_noise and self.clean is not None:
            return level.alpha * self.clean + level.sigma * self.eps
        return transfer(self.z, self.eps, self.level, level)

    @property
    def x(self) -> Tensor:
        """The clean estimate x̂ = (z − σ ε̂)/α."""
        return self.at(CLEAN)

    @classmethod
    def from_x(cls, level: Level, z: Tensor, x: Tensor) -> "Estimate":
        """From a network that predicts the clean image: ε̂ = (z − α x̂)/σ."""
        return cls(level, z, (z - level.alpha * x) / level.sigma, x)

    @classmethod
    def from_v(cls, level: Level, z: Tensor, v: Tensor) -> "Estimate":
        """From a network that predicts v = α ε − σ x on a VP level (α² + σ² = 1)."""
        x = level.alpha * z - level.sigma * v
        return cls(level, z, level.alpha * v + level.sigma * z, x)

    @classmethod
    def from_flow(cls, level: Level, z: Tensor, u: Tensor) -> "Estimate":
        """From a network that predicts the velocity u = ε − x on a rectified level (α + σ = 1)."""
        return cls(level, z, z + level.alpha * u, z - level.sigma * u)


Grid = tuple[Level, ...]
"""Levels from noise to data; `grid[::-1]` goes back. N steps have N + 1 levels."""

Denoiser = Callable[[Tensor, Level], Estimate]
"""A network with its condition and guidance bound: state [B, …] and level → `Estimate`."""

Rule = Callable[[Sequence[Estimate], Level], Tensor]
"""The evaluations so far, newest last, and the level to reach → the next state. Of many evaluations
only the newest are there, of four different levels."""

Sampler = Callable[[Denoiser, Tensor, Grid], Iterator[Tensor]]
"""A generator of states, one for each level of the grid after the first."""


class Counted:
    """A denoiser that counts its evaluations: the only source of every NFE that is reported."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.nfe = denoiser, 0

    def __call__(self, z: Tensor, level: Level) -> Estimate:
        self.nfe += 1
        return self.denoiser(z, level)
