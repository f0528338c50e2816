"""Models: what a family of checkpoints must say of itself, and what the families share."""

import math
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from bdia_exp.core import Denoiser, Level
from bdia_exp.errors import UserError
from bdia_exp.schedules import DiscreteVP
from bdia_exp.seeds import Generators


class Model(Protocol):
    """A pretrained network with its schedule, its starting noise and its way to images."""

    shape: tuple[int, int, int]
    """Channels, height and width of a state."""
    num_classes: int
    """0 for an unconditional model."""
    schedule: DiscreteVP
    """What the discrete grids (uniform, quad, …) are cut from."""
    provenance: Mapping[str, object]
    """Goes into every record: checkpoint file, sha256, number of parameters."""

    def start(self, rng: Generators, level: Level) -> Tensor:
        """The initial state at `level`: float64 [B, C, H, W]."""
        ...

    def denoiser(self, labels: Tensor | None) -> Denoiser:
        """The network with class labels, int64 [B] or None, bound to it."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """A clean state → uint8 images [B, C, H, W]."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images [B, C, H, W] → a clean state, float64."""
        ...


def parameter_count(net: nn.Module) -> int:
    """Trainable numbers in the network (buffers not counted)."""
    return sum(p.numel() for p in net.parameters())


def require_class(model: Model, key: str, label: int) -> None:
    """Raises UserError, naming the key that gave the label, unless the model has such a class."""
    if not model.num_classes:
        raise UserError(
            f"{key}={label}: this model is unconditional; leave {key}= out, or choose a model "
            "that has classes"
        )
    if not 0 <= label < model.num_classes:
        raise UserError(
            f"{key}={label} is out of range: this model has classes 0 to {model.num_classes - 1}"
        )


def starting_noise(rng: Generators, shape: tuple[int, int, int], level: Level) -> Tensor:
    """Each grid family's own convention: N(0, σ²) at EDM's levels, N(0, 1) at VP levels.

    float64 [B, *shape], on the device of the generators.
    """
    scale = level.sigma if level.alpha == 1 else math.hypot(level.alpha, level.sigma)
    return rng.randn(shape).double() * scale
