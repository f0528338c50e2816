"""Two coupled states: the steps of EDICT and CBDIA, and their inverses.

A coupling moves a pair of states (z, y) from level s to level t (`step`) and back (`undo`). Each
line of a step changes one state by an amount that depends only on the other, or mixes the two by an
invertible 2×2 matrix. Therefore `undo` is exact up to rounding for any network.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Level, transfer

Pair = tuple[Tensor, Tensor]


class Coupling(Protocol):
    """`place` is the number of the step, counted from the noisy end."""

    @property
    def amplification(self) -> float:
        """The factor by which undoing a mix enlarges an error: 1 / its smallest eigenvalue."""
        ...

    def step(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        """The pair at level t from the pair at level s."""
        ...

    def undo(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        """The pair at level s from the pair at level t."""
        ...


@dataclass(frozen=True)
class EDICT:
    """EDICT [BDIA 11-14], undone by [BDIA 15-18]. Two evaluations per step.

    `p` mixes the two states; the mix is undone by dividing by p, so p > 0. With `alternate`, y is
    updated before z at every other step, as in EDICT's public code; the mix stays as printed.
    Raises UserError unless 0 < p ≤ 1.
    """

    p: float = 0.93
    alternate: bool = False

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise UserError(
                f"sampler.p={self.p} must be more than 0 and at most 1; EDICT uses 0.93"
            )

    @property
    def amplification(self) -> float:
        return 1 / self.p / self.p

    def step(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        first, second = self._ordered(pair, place)
        first = transfer(first, model(second, s).eps, s, t)
        second = transfer(second, model(first, s).eps, s, t)
        z, y = self._ordered((first, second), place)
        z = self.p * z + (1 - self.p) * y
        y = self.p * y + (1 - self.p) * z
        return z, y

    def undo(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        z, y = pair
        y = (y - (1 - self.p) * z) / self.p
        z = (z - (1 - self.p) * y) / self.p
        first, second = self._ordered((z, y), place)
        second = transfer(second, model(first, s).eps, t, s)
        first = transfer(first, model(second, s).eps, t, s)
        return self._ordered((first, second), place)

    def _ordered(self, pair: Pair, place: int) -> Pair:
        """(z, y) → the state that this step updates first, and the other; or back to (z, y)."""
        return pair[::-1] if self.alternate and place % 2 else pair


@dataclass(frozen=True)
class CBDIA:
    """Coupled BDIA with DDIM's updates [BDIA 43-46, 60-63], undone by [BDIA 47-50].

    Two evaluations per step. (γ₁, γ₂) = (0, 1) is BDIA-DDIM with γ = 1 in the state y.
    Raises UserError unless both are 0 to 1 and they differ.
    """

    gamma1: float
    gamma2: float

    def __post_init__(self):
        if not (0 <= self.gamma1 <= 1 and 0 <= self.gamma2 <= 1) or self.gamma1 == self.gamma2:
            raise UserError(
                f"sampler.gamma1={self.gamma1} and sampler.gamma2={self.gamma2} must be 0 to 1 and "
                "different: equal ones cannot be undone"
            )

    @property
    def amplification(self) -> float:
        return 1 / abs(self.gamma1 - self.gamma2)

    def step(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        z, y = pair
        w = z + (model(y, s).at(t) - y)
        v = y - (model(w, t).at(s) - w)
        return _mix(self.gamma1, w, v), _mix(self.gamma2, w, v)

    def undo(self, model: Denoiser, pair: Pair, s: Level, t: Level, place: int) -> Pair:
        z, y = pair
        v = (self.gamma1 * y - self.gamma2 * z) / (self.gamma1 - self.gamma2)
        w = ((1 - self.gamma1) * y - (1 - self.gamma2) * z) / (self.gamma2 - self.gamma1)
        y = v + (model(w, t).at(s) - w)
        z = w - (model(y, s).at(t) - y)
        return z, y


def _mix(share: float, w: Tensor, v: Tensor) -> Tensor:
    return share * w + (1 - share) * v
