"""What the descriptions of Stable Diffusion's parts may say, checked before a network is built.

Only the fields that decide how much is built are here; the libraries check the others.
"""

from collections.abc import Mapping
from typing import Any

from bdia_exp.errors import UserError, brief
from bdia_exp.models.descriptions import Field, number, several, whole

CHANNELS, WIDTH, LAYERS = whole(1, 8192), whole(1, 65_536), whole(1, 16)
TEXT = Field(lambda value: type(value) is str, "a text")


def maybe(field: Field) -> Field:
    return Field(lambda value: value is None or field.takes(value), f"{field.words}, or null")


def per_level(field: Field) -> Field:
    """One value, or one for each size of the U-Net's images."""
    levels = several(field, 1, 8)
    return Field(
        lambda value: field.takes(value) or levels.takes(value), f"{field.words}, or {levels.words}"
    )


_BLOCKS = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": several(CHANNELS, 1, 8),
    "norm_num_groups": maybe(CHANNELS),
}
_UNET = _BLOCKS | {
    "sample_size": maybe(whole(1, 4096)),
    "layers_per_block": per_level(LAYERS),
    "transformer_layers_per_block": per_level(LAYERS),
    "cross_attention_dim": per_level(WIDTH),
    "attention_head_dim": per_level(CHANNELS),
    "num_attention_heads": maybe(per_level(CHANNELS)),
}
FIELDS: dict[str, dict[str, Field]] = {
    "unet": _UNET,
    "controlnet": _UNET,
    "vae": _BLOCKS
    | {
        "sample_size": maybe(whole(1, 65_536)),
        "layers_per_block": LAYERS,
        "latent_channels": CHANNELS,
        "scaling_factor": number(1e-6, 1e6),
    },
    "text_encoder": {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": whole(1, 64),
        "num_attention_heads": CHANNELS,
        "max_position_embeddings": whole(2, 8192),
        "vocab_size": whole(1, 10_000_000),
        "hidden_act": TEXT,
    },
    "scheduler": {
        "num_train_timesteps": whole(2, 100_000),
        "beta_start": number(1e-9, 0.999),
        "beta_end": number(1e-9, 0.999),
        "beta_schedule": TEXT,
        "prediction_type": TEXT,
    },
}


def require_fields(part: str, description: Mapping[str, Any]) -> None:
    """Raises UserError, naming the first fault, unless the fields have values in their ranges."""
    for key, field in FIELDS[part].items():
        if key in description and not field.takes(description[key]):
            what = f"{key}={brief(description[key])} must be {field.words}"
            raise UserError(f"{part} describes no network that can be built ({what})")
