"""What a network's description may say: each field's type and range, checked before building.

A description comes from a file (the arguments in one of EDM's pickles, the JSON beside a
.safetensors file) or from the configuration (`model.network`). With values in these ranges a
network is described in a second, without weights, whatever the values are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from bdia_exp.errors import UserError, brief

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Field:
    """The values that a field can have."""

    takes: Callable[[Any], bool]
    words: str
    """Follows "must be" in a message."""


def whole(low: int, high: int) -> Field:
    """A whole number; true and false are none."""
    return Field(
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number from {low:,} to {high:,}",
    )


def number(low: float, high: float) -> Field:
    """A number, whole or not; true, false and NaN are none."""
    return Field(
        lambda value: type(value) in (int, float) and low <= value <= high,
        f"a number from {low:g} to {high:g}",
    )


def several(each: Field, least: int, most: int) -> Field:
    """A list of numbers that are each of this kind."""

    def takes(value: Any) -> bool:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and least <= len(value) <= most and all(map(each.takes, value))

    return Field(takes, f"a list of {least} to {most}, each {each.words}")


def one_of(*choices: str) -> Field:
    return Field(lambda value: type(value) is str and value in choices, " or ".join(choices))


FLAG = Field(lambda value: type(value) is bool, "true or false")


SIZE, CHANNELS, MULTIPLE = whole(1, 4096), whole(1, 8192), whole(1, 64)
COLOURS = Field(lambda value: type(value) is int and value in (1, 3), "1 (grey) or 3 (colour)")
LEVELS = several(MULTIPLE, 1, 8)
RESOLUTIONS = several(SIZE, 0, 16)
BLOCKS, SHARE, CLASSES = whole(1, 16), number(0, 1), whole(0, 1_000_000)

EDM = {
    "img_resolution": SIZE,
    "img_channels": COLOURS,
    "label_dim": CLASSES,
    "use_fp16": FLAG,
    "sigma_min": number(0, 1e6),
    "sigma_max": number(1e-6, math.inf),
    "sigma_data": number(1e-6, 1e6),
    "model_type": one_of("SongUNet", "DhariwalUNet"),
    "augment_dim": whole(0, 1024),
    "model_channels": CHANNELS,
    "channel_mult": LEVELS,
    "channel_mult_emb": MULTIPLE,
    "num_blocks": BLOCKS,
    "attn_resolutions": RESOLUTIONS,
    "dropout": SHARE,
    "label_dropout": SHARE,
}
"""The arguments of `EDMPrecond` for both kinds of network."""

SONG = EDM | {
    "embedding_type": one_of("positional", "fourier"),
    "channel_mult_noise": MULTIPLE,
    "encoder_type": one_of("standard", "residual"),
    "decoder_type": one_of("standard"),
    "resample_filter": several(number(1e-3, 1e3), 2, 16),
}
"""Those of a `SongUNet`."""

DDPM = {
    "type": one_of("simple"),
    "image_size": SIZE,
    "in_channels": COLOURS,
    "out_ch": COLOURS,
    "ch": CHANNELS,
    "ch_mult": LEVELS,
    "num_res_blocks": BLOCKS,
    "attn_resolutions": RESOLUTIONS,
    "dropout": SHARE,
    "resamp_with_conv": FLAG,
}
"""The arguments of `DDPMUNet`."""


def require_halvings(size: int, times: int) -> None:
    """Raises ValueError unless an image of this size can be halved so many times."""
    if size % (1 << times):
        raise ValueError(f"a size of {size} cannot be halved {times} times")


def build(
    network: Callable[..., Net],
    description: Mapping[str, Any],
    fields: Mapping[str, Field],
    needed: Sequence[str],
    source: str,
) -> Net:
    """The described network, without weights, on the device "meta".

    Raises UserError, naming `source` and the first fault, unless all fields that are `needed` are
    there, each value is one that its field can have, and the sizes fit together.
    """
    try:
        for key in needed:
            if key not in description:
                raise ValueError(f"{key} is missing")
        for key, value in description.items():
            if key not in fields:
                raise ValueError(f"{brief(key)} is no field of such a network")
            if not fields[key].takes(value):
                raise ValueError(f"{key}={brief(value)} must be {fields[key].words}")
        with torch.device("meta"):
            return network(**description)
    except ValueError as error:
        raise UserError(f"{source} describes no network that we can build: {error}") from None
