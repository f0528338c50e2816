"""The layers of EDM's U-Nets, down to the residual block with its attention.

Parameters have the names and shapes of the published checkpoints, whose weights load by name. They
are cast to the dtype of a layer's input. The result of a convolution or a norm is changed in
place: the numbers are the same, and less memory is read and written. DDPM's network, too, takes its
norm from here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FUSED = 256
"""From this number of pixels on, the parts of an attention are copied so that the channels of a
head are next to each other: PyTorch's fused kernels need this. For fewer pixels the gain would be
small, and the bits are those of earlier results."""


class Linear(nn.Linear):
    """`nn.Linear` whose parameters are cast to the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` whose parameters are cast to the dtype of its input.

    In bfloat16 on a CPU, PyTorch's norm is slow backwards and on planes of fewer than 1,024
    pixels. There it is computed in float32, and only its result is in bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        slow = x.requires_grad or x[0, 0].numel() < 1024
        in_float32 = slow and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        wide = x.float() if in_float32 else x
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.group_norm(wide, self.num_groups, weight, bias, self.eps).to(x.dtype)


def edm_norm(channels: int, eps: float) -> GroupNorm:
    """EDM's norm: over groups of at least four channels, 32 groups at most."""
    groups = min(32, channels // 4)
    if channels < 4 or channels % groups:
        raise ValueError(f"{channels} channels cannot be normalised in {groups} groups")
    return GroupNorm(groups, channels, eps)


class Conv2d(nn.Module):
    """A k×k convolution ("same" padding), after doubling or halving the resolution if asked.

    `kernel=0` only resamples. `taps` is the resampling filter in one dimension, of even length.
    [1, 1] is nearest-neighbour up and a 2×2 mean down. The filter in two dimensions is a buffer,
    as in the published state dicts. With `resample_last` the resolution is halved after the
    convolution, which then pads for the filter too.
    """

    resample_filter: Tensor

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        taps: Sequence[float] = (1, 1),
        resample_last: bool = False,
    ):
        super().__init__()
        self.up, self.down, self.resample_last = up, down, resample_last
        if len(taps) % 2:
            raise ValueError(f"a resampling filter of {len(taps)} numbers is not of even length")
        self.padding, self.taps = kernel // 2, tuple(taps)
        self.weight = nn.Parameter(torch.empty(cout, cin, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(cout)) if kernel else None
        if up or down:
            # Plain numbers: on the meta device, products of tensors would load PyTorch's compiler.
            line = [tap / sum(self.taps) for tap in self.taps]
            plane = torch.tensor([[a * b for b in line] for a in line], dtype=torch.float32)
            self.register_buffer("resample_filter", plane[None, None])

    def forward(self, x: Tensor) -> Tensor:
        around = len(self.taps) // 2 - 1
        if not self.resample_last:
            x = self._resample(x, around)
        if self.weight is None or self.bias is None:
            return x
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.resample_last:
            # A constant is the same before and after the filter.
            return self._resample(F.conv2d(x, weight, bias, padding=self.padding + around), 0)
        return F.conv2d(x, weight, bias, padding=self.padding)

    def _resample(self, x: Tensor, padding: int) -> Tensor:
        """With the filter, one channel at a time; the box filter has faster operations."""
        if not (self.up or self.down):
            return x
        if len(self.taps) == 2:
            return (
                F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)
            )
        channels = x.shape[1]
        filters = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * filters, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, filters, stride=2, padding=padding, groups=channels)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise label at `channels / 2` geometric frequencies."""

    def __init__(self, channels: int, *, endpoint: bool):
        super().__init__()
        self.cosines, self.endpoint = _half(channels), endpoint

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(self.cosines, dtype=torch.float32, device=x.device)
        angles = torch.outer(x, (1 / 10000) ** (steps / (self.cosines - self.endpoint)))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of the noise label at `channels / 2` random frequencies, a buffer."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(_half(channels)) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _half(channels: int) -> int:
    """The number of cosines. Raises ValueError unless there are as many sines."""
    if channels % 2:
        raise ValueError(f"an embedding must have an even number of channels, not {channels}")
    return channels // 2


class UNetBlock(nn.Module):
    """Residual block, modulated by the embedding, with self-attention where `heads` > 0.

    `adaptive` chooses how the embedding enters: as scale and shift of the second norm (ADM), or
    added before it (DDPM++).
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        emb: int,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float,
        skip_scale: float,
        eps: float,
        resample_proj: bool,
        adaptive: bool,
        taps: Sequence[float] = (1, 1),
    ):
        super().__init__()
        if heads and cout % heads:
            raise ValueError(f"{cout} channels cannot be split into {heads} heads of attention")
        self.in_channels, self.out_channels = cin, cout
        self.heads, self.dropout = heads, dropout
        self.skip_scale, self.adaptive = skip_scale, adaptive

        self.norm0 = edm_norm(cin, eps)
        self.conv0 = Conv2d(cin, cout, 3, up=up, down=down, taps=taps)
        self.affine = Linear(emb, cout * (2 if adaptive else 1))
        self.norm1 = edm_norm(cout, eps)
        self.conv1 = Conv2d(cout, cout, 3)
        self.skip = None
        if cin != cout or up or down:
            kernel = 1 if resample_proj or cin != cout else 0
            self.skip = Conv2d(cin, cout, kernel, up=up, down=down, taps=taps)
        if heads:
            self.norm2 = edm_norm(cout, eps)
            self.qkv = Conv2d(cout, cout * 3, 1)
            self.proj = Conv2d(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        skip = x if self.skip is None else self.skip(x)
        x = self.conv0(F.silu(self.norm0(x), inplace=True))
        modulation = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            x = F.silu(self.norm1(x).mul_(scale + 1).add_(shift), inplace=True)
        else:
            x = F.silu(self.norm1(x.add_(modulation)), inplace=True)
        x = self.conv1(F.dropout(x, self.dropout, self.training))
        x = x.add_(skip).mul_(self.skip_scale)
        if self.heads:
            x = self.proj(self._attend(self.norm2(x))).add_(x).mul_(self.skip_scale)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # q, k and v are interleaved inside each channel of a head, not stored one after the other.
        qkv = self.qkv(x).permute(0, 2, 3, 1).reshape(b, h * w, self.heads, c // self.heads, 3)
        parts = qkv.permute(4, 0, 2, 1, 3).unbind()
        if h * w >= FUSED:
            parts = tuple(part.contiguous() for part in parts)
        mixed = F.scaled_dot_product_attention(*parts)  # [b, heads, pixels, channels of a head]
        return mixed.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
