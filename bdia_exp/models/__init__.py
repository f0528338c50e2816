"""Models: the interface of all model families, and functions that they share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Level
from bdia_exp.samplers.schedules import Schedule, is_edm, is_vp
from bdia_exp.seeds import Generators


@dataclass(frozen=True)
class Text:
    """The prompts of a batch, for a text-to-image model."""

    prompts: Sequence[str]
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is no guidance."""
    control: Tensor | None = None
    """uint8 pixels [1 or B, 3, H, W]: the ControlNet's input, such as edges or depth."""


@dataclass(frozen=True)
class Classes:
    """The class labels of a batch with guidance, for a model trained with and without classes."""

    labels: Tensor
    """int64 [B]."""
    guidance: float
    """Scale of classifier-free guidance; 1 is no guidance."""


Condition = Tensor | Classes | Text | None
"""Class labels, int64 [B], perhaps with guidance; or texts; or nothing."""


def of_classes(labels: Tensor | None, guidance: float | None) -> Condition:
    """The condition of class labels, int64 [B], or of none; None is no guidance."""
    return labels if labels is None or guidance is None else Classes(labels, guidance)


class Model(Protocol):
    """A pretrained network with its schedule, its starting noise and its conversion to images."""

    shape: tuple[int, ...]
    """The shape of one state: channels, height and width; of pairs (x, v), 2 before these."""
    image_shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    num_classes: int
    """0 for a model without classes."""
    takes_text: bool
    """Whether its condition is a `Text`."""
    takes_guidance: bool
    """Whether its condition can have a guidance."""
    networks: Mapping[str, nn.Module]
    """All its networks, by name."""
    device: torch.device
    provenance: Mapping[str, object]
    """Goes into every record: checkpoint file, sha256, number of parameters."""

    @property
    def schedule(self) -> Schedule:
        """The levels from which grids are chosen."""
        ...

    def start(self, rng: Generators, level: Level) -> Tensor:
        """The initial state at `level`: float64 [B, *shape]."""
        ...

    def denoiser(self, condition: Condition) -> Denoiser:
        """The network with the condition of a batch. None is no class, or the empty prompt."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """A clean state [B, *shape] → uint8 images [B, *image_shape]."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images [B, *image_shape] → a clean state, float64 [B, *shape]."""
        ...


class OfPixels:
    """The part that models share whose states are images, with pixels of −1 to 1."""

    shape: tuple[int, ...]
    device: torch.device
    takes_text = takes_guidance = False

    def start(self, rng: Generators, level: Level) -> Tensor:
        return starting_noise(rng, self.shape, level).to(self.device)

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device).double() / 127.5 - 1


@runtime_checkable
class ReadsText(Protocol):
    """What a model has too if it takes text."""

    def warn_of_cut(self, prompts: Sequence[str]) -> int:
        """Warns of prompts that are longer than the model reads. Returns their number."""
        ...


def warn_of_cut(model: Model, prompts: Sequence[str]) -> int:
    """The same for any model: 0 if it takes no text."""
    return model.warn_of_cut(prompts) if isinstance(model, ReadsText) else 0


def parameter_count(net: nn.Module) -> int:
    """Trainable numbers in the network (buffers not counted)."""
    return sum(p.numel() for p in net.parameters())


def require_class(model: Model, key: str, label: int | None) -> None:
    """Raises UserError, naming the key that gave the label, unless it is None or a class of the
    model."""
    if label is None:
        return
    if not model.num_classes:
        raise UserError(
            f"{key}={label}: this model has no classes; leave {key}= out, or choose a model "
            "that has them"
        )
    if not 0 <= label < model.num_classes:
        raise UserError(
            f"{key}={label} is out of range: this model has classes 0 to {model.num_classes - 1}"
        )


def require_guidance(model: Model, guidance: float | None) -> None:
    """Raises UserError unless it is None or 1, or the model takes it: finite, and at least 0."""
    if guidance in (None, 1):
        return
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UserError(f"guidance={guidance:g} must be 0 or more; 1 is no guidance")
    if not model.takes_guidance:
        raise UserError(
            f"guidance={guidance:g}: guidance needs a model of texts, or one that was trained with "
            "and without its classes, such as model=fashion_guided with diffusion=own; leave "
            "guidance= out"
        )


def starting_noise(rng: Generators, shape: tuple[int, ...], level: Level) -> Tensor:
    """N(0, σ²) at EDM's levels; N(0, α² + σ²) at others, as if the data had variance 1.

    So N(0, 1) at VP levels and at pure noise. float64 [B, *shape], on the device of the generators.
    """
    scale = level.sigma if is_edm(level) else math.hypot(level.alpha, level.sigma)
    return rng.randn(shape).double() * scale


def at_vp_level(level: Level, schedule: Schedule) -> Level:
    """The VP level at which a network for VP levels is evaluated for a state at `level`.

    A VP level, also the clean one, is returned unchanged. For any other, such as EDM's (1, σ, σ) or
    rectified flow's (1 − t, t, t), it is the VP level of the same σ/α, with a fractional time
    (`DiscreteVP.at`); the network's input is then α_vp/α times the state.

    Raises UserError if σ/α is beyond the schedule's last time, as at pure noise.
    """
    return level if is_vp(level) and not level.is_noise else schedule.at(level.rho)
