"""DDPM's network as in the DDIM and PNDM programs, and their checkpoints as models.

Results of convolutions and norms are changed in place, as in `layers`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdia_exp.models import Condition, OfPixels, at_vp_level, descriptions, parameter_count
from bdia_exp.models.descriptions import require_halvings
from bdia_exp.models.layers import GroupNorm
from bdia_exp.models.running import Running, number
from bdia_exp.samplers.core import Denoiser, Estimate, Level
from bdia_exp.samplers.schedules import DiscreteVP, linear_vp
from bdia_exp.sources import checkpoints


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels, eps=1e-6)


class _Block(nn.Module):
    """Residual block: two convolutions, the embedding of the time added between them."""

    def __init__(self, cin: int, cout: int, emb: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.temb_proj = nn.Linear(emb, cout)
        self.norm2, self.conv2 = _norm(cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.nin_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = h.add_(self.temb_proj(F.silu(temb))[:, :, None, None])
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)))
        return h.add_(self.nin_shortcut(x))


class _Attention(nn.Module):
    """Self-attention over the pixels, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return self.proj_out(mixed.reshape(x.shape)).add_(x)


class _Down(nn.Module):
    """Halves the resolution, with padding at the right and at the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    """Doubles the resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Stage(nn.Module):
    """The blocks of one resolution, with attention after each or after none of them."""

    def __init__(self, cins: Sequence[int], cout: int, attention: bool, emb: int, dropout: float):
        super().__init__()
        self.block = nn.ModuleList(_Block(cin, cout, emb, dropout) for cin in cins)
        self.attn = nn.ModuleList(_Attention(cout) if attention else nn.Identity() for _ in cins)


class _DownStage(_Stage):
    """Appends all its results to `skips` and returns the last one."""

    downsample: nn.Module | None

    def forward(self, x: Tensor, temb: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attend in zip(self.block, self.attn, strict=True):
            x = attend(block(x, temb))
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x


class _UpStage(_Stage):
    """Every block takes the last of `skips`, concatenated to its input."""

    upsample: nn.Module | None

    def forward(self, x: Tensor, temb: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attend in zip(self.block, self.attn, strict=True):
            x = attend(block(torch.cat([x, skips.pop()], dim=1), temb))
        return x if self.upsample is None else self.upsample(x)


class _TimeEmbedding(nn.Module):
    """Sines and cosines of t at channels/2 geometric frequencies, and two layers."""

    def __init__(self, channels: int, emb: int):
        super().__init__()
        self.channels = channels
        self.dense = nn.ModuleList([nn.Linear(channels, emb), nn.Linear(emb, emb)])

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = torch.outer(t.float().reshape(-1), (steps * (-math.log(10000) / (half - 1))).exp())
        first, second = self.dense
        return second(F.silu(first(torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype))))


class DDPMUNet(nn.Module):
    """DDPM's U-Net, ε̂(x, t); its arguments and its parameters have the names of PNDM's files.

    Called as `net(x, t)`: x [B, in_channels, R, R] with R = image_size, t a number or [B], which
    may be fractional. Returns the noise estimate, float32 of x's shape. The body runs in the dtype
    of the parameters.

    Raises ValueError for options that no published model uses, and for sizes that do not fit.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        out_ch: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        type: str = "simple",
        resamp_with_conv: bool = True,
    ):
        super().__init__()
        if type != "simple" or resamp_with_conv is not True:
            raise ValueError("only type=simple with resamp_with_conv=true is supported")
        if not ch_mult or min(image_size, in_channels, ch, num_res_blocks, *ch_mult) < 1:
            raise ValueError("sizes, channels and numbers of blocks must be positive")
        if out_ch != in_channels:
            raise ValueError(f"out_ch={out_ch} must equal in_channels={in_channels}")
        if ch % 32:
            raise ValueError(f"ch={ch} must be a multiple of 32, the groups of every normalisation")
        require_halvings(image_size, len(ch_mult) - 1)
        self.image_size, self.in_channels = image_size, in_channels
        emb, last, skips, c = 4 * ch, len(ch_mult) - 1, [ch], ch
        attention = [image_size >> level in attn_resolutions for level in range(len(ch_mult))]

        self.temb = _TimeEmbedding(ch, emb)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(ch * m for m in ch_mult):
            cins = [c] + [width] * (num_res_blocks - 1)
            down, c = _DownStage(cins, width, attention[level], emb, dropout), width
            down.downsample = _Down(c) if level != last else None
            skips += [c] * (num_res_blocks + (level != last))
            self.down.append(down)
        block_1, block_2 = (_Block(c, c, emb, dropout) for _ in range(2))
        self.mid = nn.ModuleDict({"block_1": block_1, "attn_1": _Attention(c), "block_2": block_2})
        for level, width in reversed(list(enumerate(ch * m for m in ch_mult))):
            cins = [below + skips.pop() for below in [c] + [width] * num_res_blocks]
            up, c = _UpStage(cins, width, attention[level], emb, dropout), width
            up.upsample = _Up(c) if level else None
            self.up.insert(0, up)
        self.norm_out, self.conv_out = _norm(c), nn.Conv2d(c, out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        x = x.to(self.conv_in.weight.dtype)
        temb = self.temb(torch.as_tensor(t, device=x.device), x.dtype)
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down:
            x = stage(x, temb, skips)
        x = self.mid["attn_1"](self.mid["block_1"](x, temb))
        x = self.mid["block_2"](x, temb)
        for stage in reversed(self.up):
            x = stage(x, temb, skips)
        return self.conv_out(F.silu(self.norm_out(x))).float()


_SIZES = ("image_size", "in_channels", "out_ch", "ch", "ch_mult")
NEEDED = (*_SIZES, "num_res_blocks", "attn_resolutions")
"""The arguments that a description must have."""


class DDPM(OfPixels):
    """A `DDPMUNet` as a `Model`. Levels that are not VP are mapped by σ/α (`at_vp_level`)."""

    num_classes = 0

    def __init__(
        self,
        net: DDPMUNet,
        schedule: DiscreteVP,
        provenance: Mapping[str, object],
        running: Running | None = None,
    ):
        self.net, self.schedule, self.provenance = net, schedule, provenance
        self._call = (running or Running()).caller(net)
        self.networks = {"U-Net": net}
        self.shape = (net.in_channels, net.image_size, net.image_size)
        self.image_shape = self.shape
        self.device = next(net.parameters()).device

    def denoiser(self, condition: Condition) -> Denoiser:
        def denoise(z: Tensor, level: Level) -> Estimate:
            known = at_vp_level(level, self.schedule)
            x = z * (known.alpha / level.alpha)
            return Estimate(level, z, self._call(x, number(known.time, self.device)).to(z.dtype))

        return denoise

    def decode(self, z: Tensor) -> Tensor:
        """PNDM's rounding, to the nearest: 255 · clamp((x + 1)/2) + ½, truncated."""
        return (((z + 1) / 2).clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def load(checkpoint: str, *, network: Mapping, **how: Any) -> DDPM:
    """A checkpoint in PNDM's, DDIM's or diffusers' layout, ready to sample.

    `network` has `DDPMUNet`'s arguments, as these files do not; `how` are those of `Running`. With
    device="meta" the network has no weights, and the checkpoint need not exist.

    Raises UserError if the file is missing or damaged, or is of another network.
    """
    running = Running(**how)
    net = descriptions.build(DDPMUNet, network, descriptions.DDPM, NEEDED, "model.network")
    provenance: dict[str, object] = {"parameters": parameter_count(net)}
    if running.device != "meta":
        file = checkpoints.read(checkpoints.locate(checkpoint))
        checkpoints.load_into(net, replace(file, state=by_our_names(file.state)))
        provenance |= {"checkpoint": file.path.name, "sha256": file.sha256}
    return DDPM(running.ready(net, running.body), linear_vp(), provenance, running)


_FROM_DIFFUSERS = {
    "time_embedding.linear_1.": "temb.dense.0.",
    "time_embedding.linear_2.": "temb.dense.1.",
    "conv_norm_out.": "norm_out.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "down_blocks.": "down.",
    ".resnets.": ".block.",
    ".time_emb_proj.": ".temb_proj.",
    ".conv_shortcut.": ".nin_shortcut.",
    ".downsamplers.0.": ".downsample.",
    ".upsamplers.0.": ".upsample.",
    ".attentions.": ".attn.",
    ".group_norm.": ".norm.",
    **dict.fromkeys((".to_q.", ".query."), ".q."),
    **dict.fromkeys((".to_k.", ".key."), ".k."),
    **dict.fromkeys((".to_v.", ".value."), ".v."),
    **dict.fromkeys((".to_out.0.", ".proj_attn."), ".proj_out."),
}


def by_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of diffusers' `UNet2DModel` with `DDPMUNet`'s names; others are unchanged.

    diffusers counts the levels of the decoder from the lowest resolution. Its attention layers are
    matrices [C, C], with older or newer names, instead of 1×1 convolutions.
    """
    if "time_embedding.linear_1.weight" not in state:
        return dict(state)
    up = re.compile(r"^up_blocks\.(\d{1,3})\.")
    top = max((int(found[1]) for found in map(up.match, state) if found), default=0)
    ours = {}
    for name, tensor in state.items():
        name = up.sub(lambda found: f"up.{top - int(found[1])}.", name)
        for theirs, mine in _FROM_DIFFUSERS.items():
            name = name.replace(theirs, mine)
        matrix = ".attn" in name and tensor.ndim == 2
        ours[name] = tensor[:, :, None, None] if matrix else tensor
    return ours
