"""Stable Diffusion's single files: from diffusers' names to those of CompVis and Stability.

Written from the published layouts, the other way round than any converter goes:

* `model.diffusion_model.`, the U-Net: blocks are numbered throughout, each holds a residual block
  (0) and perhaps a transformer (1), and what changes the size comes after them.
* `first_stage_model.`, the autoencoder: `down` and `up` are both numbered from the largest images,
  and the attention's linear maps are convolutions.
* `cond_stage_model.`, the text encoder: transformers' own (`transformer.text_model.`) or OpenCLIP's
  (`model.`), which has one more layer than is used.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}


def unet(state: Mapping[str, Tensor], layers: int) -> State:
    """With `layers` residual blocks at each size on the way down."""
    attentive = {m[1] for name in state if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}

    def renamed(name: str) -> str:
        for ours, theirs in ENDS.items():
            if name.startswith(f"{ours}."):
                return theirs + name.removeprefix(ours)
        side, rest = name.split("_block", 1)
        if side == "mid":
            _, kind, place, rest = rest.split(".", 3)
            return f"middle_block.{MIDDLE[f'{kind}.{place}']}.{_residual(rest)}"
        _, block, kind, place, rest = rest.split(".", 4)
        number = int(block) * (layers + 1) + int(place) + (side == "down")
        group = "input_blocks" if side == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{group}.{number + layers}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            return f"{group}.{number + layers}.{2 if block in attentive else 1}.{rest}"
        return f"{group}.{number}.{int(kind == 'attentions')}.{_residual(rest)}"

    return {f"model.diffusion_model.{renamed(name)}": tensor for name, tensor in state.items()}


def _residual(rest: str) -> str:
    part, dot, leaf = rest.partition(".")
    return RESIDUAL.get(part, part) + dot + leaf if dot and "." not in leaf else rest


def vae(state: Mapping[str, Tensor], sizes: int) -> State:
    """With blocks of so many sizes."""
    found = {}
    for name, tensor in state.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{sizes - 1 - int(m[1])}", name)
        name = re.sub(r"(up\.\d)\.resnets", r"\1.block", name)
        name = name.replace("upsamplers.0", "upsample")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(
                "group_norm", "norm"
            )
            name = re.sub(r"to_([qkv])\.", r"\1.", name).replace("to_out.0", "proj_out")
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        found[f"first_stage_model.{name}"] = tensor
    return found


def clip(state: Mapping[str, Tensor]) -> State:
    """As Stable Diffusion 1 has it, with the positions that transformers once wrote."""
    prefix = "cond_stage_model.transformer.text_model."
    found = {prefix + name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return found | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}


LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(state: Mapping[str, Tensor]) -> State:
    """As Stable Diffusion 2 has it: with a last layer and a projection that it does not use."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    layers = 1 + max(
        int(m[1]) for name in state if (m := re.match(r"encoder\.layers\.(\d+)", name))
    )
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "attn_mask": torch.full((77, 77), -torch.inf).triu(1),
        "logit_scale": torch.tensor(4.6),
    }
    width = len(found["ln_final.bias"])
    found["text_projection"] = torch.randn(width, width)
    for number in range(layers + 1):
        # The unused one is a copy of the first, all its numbers changed.
        old = f"encoder.layers.{number % layers}."
        layer = {n.removeprefix(old): t for n, t in state.items() if n.startswith(old)}
        if number == layers:
            layer = {name: tensor + 1 for name, tensor in layer.items()}
        new = f"transformer.resblocks.{number}."
        for leaf in ("weight", "bias"):
            maps = [layer[f"self_attn.{which}_proj.{leaf}"] for which in "qkv"]
            found[f"{new}attn.in_proj_{leaf}"] = torch.cat(maps)
            found |= {f"{new}{b}.{leaf}": layer[f"{a}.{leaf}"] for a, b in LAYER.items()}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in found.items()}


def beside() -> State:
    """What else real files have: the schedule and what training left."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return {
        "betas": betas,
        "alphas_cumprod": (1 - betas).cumprod(0),
        "logvar": torch.zeros(1000),
        "scale_factor": torch.tensor(0.18215),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.loss.discriminator.main.0.weight": torch.ones(2, 3, 4, 4),
    }


def with_raw(state: Mapping[str, Tensor]) -> State:
    """With the U-Net's weights as averages, and others as the raw ones, as in v1-5-pruned.ckpt."""
    own = {name: tensor for name, tensor in state.items() if name.startswith("model.diff")}
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor
        for name, tensor in own.items()
    }
    return {**state, **{name: tensor + 1 for name, tensor in own.items()}, **averages}


def single_file(
    parts: Mapping[str, torch.nn.Module], text: Callable[[Mapping[str, Tensor]], State]
) -> State:
    """All of it, as stored: in half precision."""
    config = parts["unet"].config, parts["vae"].config
    state = unet(parts["unet"].state_dict(), config[0].layers_per_block)
    state |= vae(parts["vae"].state_dict(), len(config[1].block_out_channels))
    state |= text(parts["text_encoder"].state_dict()) | beside()
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
