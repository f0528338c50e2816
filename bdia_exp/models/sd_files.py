"""Stable Diffusion's files: diffusers' folders and single files, as descriptions and weights.

The networks are diffusers' and transformers'. `sources.checkpoints` reads their weights
and executes nothing. The weights must fit by name and shape.

A description is a dict of `unet`, `vae`, `text_encoder` and `scheduler`, each with the keys of
diffusers' config.json, and `pad_token`, the tokenizer's. A folder contains its description; a
single file does not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdia_exp.errors import UserError, brief
from bdia_exp.extras import require
from bdia_exp.models.sd_descriptions import require_fields
from bdia_exp.samplers.schedules import DiscreteVP, linear_vp, scaled_linear_vp
from bdia_exp.sources import checkpoints
from bdia_exp.sources.checkpoints import PIPELINE, Checkpoint
from bdia_exp.store.files import json_object

Description = dict[str, Any]

MAX_JSON = 1_000_000  # bytes; a description has some thousands
LDM = "model.diffusion_model."
"""The prefix of the U-Net's names in a single file."""


def described_by(folder: Path) -> Description:
    """The contents of a folder's config.json files. Raises UserError as `read_json` does."""
    files = {name: folder / name / "config.json" for name in PIPELINE}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    return {name: read_json(file) for name, file in files.items()}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a folder. Raises UserError if it is missing or not a JSON object."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")

    try:
        if not file.is_file():  # a pipe would never end
            raise OSError("no file")
        if file.stat().st_size > MAX_JSON:
            raise ValueError(f"over {MAX_JSON:,} bytes")
        return json_object(file.read_text("utf-8"), refuse)
    except OSError:
        raise UserError(
            f"{file} is missing: give a folder in diffusers' layout (unet, vae, text_encoder, "
            "scheduler, tokenizer)"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): fetch it again") from None


def require_promised(promised: Mapping[str, Any], found: Description, source: str) -> None:
    """Raises UserError, naming the first difference, unless `found` agrees with `promised`."""
    for part in (*PIPELINE, "scheduler", "controlnet"):
        for key, value in promised.get(part, {}).items():
            here = found[part].get(key, value)
            if here != value:
                raise UserError(
                    f"{source} is not the network that model= promises: its {part}.{key} is "
                    f"{brief(here)}, not {value}; give model=sd for another"
                )


def plain(value: Any) -> Any:
    """A configuration's node as dicts, lists and values; diffusers stores what it gets."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def require_plain(unet: Any, vae: Any, text: Any) -> None:
    """Raises UserError unless the three networks are those of a text-to-image Stable Diffusion.

    Other models come in the same layout: inpainting, depth, SDXL.
    """
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if getattr(vae, key, None) is not None:
            raise UserError(f"vae.{key} is not supported: give a Stable Diffusion 1 or 2")
    if not isinstance(vae.scaling_factor, (int, float)):
        raise UserError(f"vae.scaling_factor={vae.scaling_factor} must be a number")
    if getattr(unet, "addition_embed_type", None):
        raise UserError(
            "this U-Net needs more inputs than a text, like SDXL's: give a Stable Diffusion 1 or 2"
        )
    for what, has, wants in (
        ("unet.in_channels", unet.in_channels, vae.latent_channels),
        ("unet.out_channels", unet.out_channels, vae.latent_channels),
        ("unet.cross_attention_dim", unet.cross_attention_dim, text.hidden_size),
    ):
        if plain(has) not in (wants, [wants] * len(unet.block_out_channels)):
            raise UserError(
                f"{what}={has} does not fit the other networks, which need {wants}: only "
                "text-to-image models are supported, not inpainting or depth"
            )


def schedule(scheduler: Mapping[str, Any]) -> DiscreteVP:
    """The schedule of a description. Raises UserError for one that is not supported."""
    kinds: dict[str, Callable[..., DiscreteVP]] = {
        "scaled_linear": scaled_linear_vp,
        "linear": linear_vp,
    }
    require_fields("scheduler", scheduler)
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if scheduler.get(key):
            raise UserError(f"the scheduler's {key} is not supported: give a model without it")
    kind = scheduler.get("beta_schedule", "linear")
    if kind not in kinds:
        raise UserError(f"beta_schedule={brief(kind)} is not supported: only {' and '.join(kinds)}")
    try:
        return kinds[kind](
            float(scheduler.get("beta_start", 0.0001)),
            float(scheduler.get("beta_end", 0.02)),
            int(scheduler.get("num_train_timesteps", 1000)),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"the scheduler's betas are not numbers ({error})") from None


def prediction(scheduler: Mapping[str, Any]) -> str:
    """`epsilon` or `v_prediction`. Raises UserError for any other."""
    found = scheduler.get("prediction_type", "epsilon")
    if found not in ("epsilon", "v_prediction"):
        raise UserError(
            f"prediction_type={brief(found)} is not supported: only epsilon and v_prediction"
        )
    return found


def require_match(control: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raises UserError unless a ControlNet has the sizes of this U-Net."""
    for key in ("cross_attention_dim", "block_out_channels", "layers_per_block", "in_channels"):
        if plain(control[key]) != plain(unet[key]):
            raise UserError(
                f"this ControlNet is for another model: its {key} is {plain(control[key])}, the "
                f"U-Net's {plain(unet[key])}; give one that was trained for this model"
            )


def build(part: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of a part, with new weights; without weights in `torch.device("meta")`.

    Raises UserError if no network can be built from the description.
    """
    diffusers, transformers = require("diffusers"), require("transformers")
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    require_fields(part, known)
    try:
        if part == "text_encoder":
            kind = transformers.CLIPTextConfig
            # `attn_implementation` of a file could name a program of the hub, to be run.
            usual = kind().to_dict()
            own = {key: value for key, value in known.items() if key in usual}
            return transformers.CLIPTextModel(kind.from_dict(own))
        kinds = {
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
            "controlnet": diffusers.ControlNetModel,
        }
        return kinds[part].from_config(known)
    except Exception as error:  # a description can be wrong in any way
        told = " ".join(str(error).split())
        what = f"{type(error).__name__}: {brief(told)}"
        raise UserError(f"{part} describes no network that can be built ({what})") from None


def fill(part: str, net: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the checkpoint's weights into `net`, which may be on the meta device.

    Accepts older names too. Raises UserError if they do not fit.
    """
    state = dict(checkpoint.state)
    if part == "vae":
        state = {_attention(name): tensor for name, tensor in state.items()}
    if part == "text_encoder":
        state = _text_names(state, net.state_dict())
    checkpoints.load_into(net, replace(checkpoint, state=state))
    for name, buffer in net.named_buffers():
        if buffer.is_meta:  # not in any file: the positions 0, 1, …
            owner = net.get_submodule(name.rpartition(".")[0])
            positions = torch.arange(buffer.shape[-1], dtype=buffer.dtype)
            setattr(owner, name.rpartition(".")[2], positions.expand(buffer.shape))


def _attention(name: str) -> str:
    """The newer name of an attention layer of an autoencoder; files before 2023 use older ones."""
    if ".attentions." not in name:
        return name
    for old, new in {
        ".query.": ".to_q.",
        ".key.": ".to_k.",
        ".value.": ".to_v.",
        ".proj_attn.": ".to_out.0.",
    }.items():
        name = name.replace(old, new)
    return name


def _text_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's state with the names that the installed transformers uses.

    Up to 5.5 they begin with `text_model.`. Positions, which old files have, are left out.
    """
    prefix = "text_model." if any(name.startswith("text_model.") for name in wanted) else ""
    return {
        prefix + name.removeprefix("text_model."): tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
        and name.partition(".")[0] not in ("text_projection", "logit_scale")
    }


def read_single(path: Path, description: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """The three networks' weights from one file, through diffusers' converters.

    Raises UserError if the file is not of Stable Diffusion.
    """
    whole = checkpoints.read(path)
    if not any(name.startswith(LDM) for name in whole.state):
        raise UserError(
            f"{path} holds no Stable Diffusion: its names should begin with {LDM}, "
            "first_stage_model. and cond_stage_model."
        )
    tools = require("diffusers.loaders.single_file_utils")
    state = whole.state
    converted = {
        "unet": tools.convert_ldm_unet_checkpoint({**state}, {**description["unet"]}),
        "vae": tools.convert_ldm_vae_checkpoint({**state}, {**description["vae"]}),
        "text_encoder": _text_state(tools, state, description["text_encoder"]),
    }
    return {part: replace(whole, state=own) for part, own in converted.items()}


def _text_state(tools: Any, state: Mapping[str, Tensor], config: Mapping[str, Any]):
    """The state of OpenCLIP's encoder (Stable Diffusion 2) or of CLIP's (version 1)."""
    if "cond_stage_model.model.token_embedding.weight" not in state:
        return tools.convert_ldm_clip_checkpoint({**state})
    with torch.device("meta"):
        like = build("text_encoder", config)  # only its width is used
    found = tools.convert_open_clip_checkpoint(like, {**state})
    # The encoder's last layer is in the file but not in the network.
    layers = config["num_hidden_layers"]
    last = f"encoder.layers.{layers}."
    return {name: tensor for name, tensor in found.items() if last not in name}
