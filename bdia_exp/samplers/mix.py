"""A 2×2 matrix as the coefficient of a level: it mixes x and v, axis 1 of a state [B, 2, …]."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """[[xx, xv], [vx, vv]] with the operators of `core.Coefficient`; hashable, compared by value.

    Mix * state mixes axis 1, Mix * Mix is the product, a / b = a b⁻¹ and state / a = a⁻¹ state. A
    number stands for that multiple of the identity. Raises ZeroDivisionError where there is no
    inverse, and ValueError for a state without an axis of two.
    """

    xx: float
    xv: float
    vx: float
    vv: float

    @classmethod
    def of(cls, matrix: Tensor) -> "Mix":
        """From a tensor [2, 2]."""
        return cls(*matrix.flatten().tolist())

    @property
    def T(self) -> "Mix":  # noqa: N802
        """The transpose."""
        return Mix(self.xx, self.vx, self.xv, self.vv)

    @property
    def power(self) -> float:
        """The mean square of Mix * N(0, 1)."""
        return (self.xx**2 + self.xv**2 + self.vx**2 + self.vv**2) / 2

    @property
    def inverse(self) -> "Mix":
        det = self.xx * self.vv - self.xv * self.vx
        return Mix(self.vv / det, -self.xv / det, -self.vx / det, self.xx / det)

    def __mul__(self, other):
        if isinstance(other, Tensor):
            return self._of_state(other)
        b = _mix(other)
        return Mix(
            self.xx * b.xx + self.xv * b.vx,
            self.xx * b.xv + self.xv * b.vv,
            self.vx * b.xx + self.vv * b.vx,
            self.vx * b.xv + self.vv * b.vv,
        )

    def _of_state(self, u: Tensor) -> Tensor:
        if u.ndim < 2 or u.shape[1] != 2:
            raise ValueError(f"a Mix acts on states [B, 2, …], not {[*u.shape]}")
        x, v = u.unbind(1)
        return torch.stack([self.xx * x + self.xv * v, self.vx * x + self.vv * v], 1)

    def __rmul__(self, number: float) -> "Mix":
        return self * number

    def __truediv__(self, other: "Factor") -> "Mix":
        return self * _mix(other).inverse

    def __rtruediv__(self, other):
        return self.inverse * other

    def __sub__(self, other: "Factor") -> "Mix":
        b = _mix(other)
        return Mix(self.xx - b.xx, self.xv - b.xv, self.vx - b.vx, self.vv - b.vv)

    def __rsub__(self, number: float) -> "Mix":
        return _mix(number) - self


Factor: TypeAlias = Mix | float


def _mix(factor: Factor) -> Mix:
    return factor if isinstance(factor, Mix) else Mix(factor, 0.0, 0.0, factor)
