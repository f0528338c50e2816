"""The layers of EDM's U-Nets, down to the residual block with its attention.

Parameters have the names and shapes of the published checkpoints, whose weights load by name. They
are cast to the dtype of a layer's input.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """`nn.Linear` whose parameters are cast to the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class GroupNorm(nn.GroupNorm):
    """Normalisation over groups of at least four channels, 32 groups at most."""

    def __init__(self, channels: int, eps: float):
        super().__init__(min(32, channels // 4), channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(
            x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )


class Conv2d(nn.Module):
    """A k×k convolution ("same" padding), after doubling or halving the resolution if asked.

    `kernel=0` only resamples. The resampling filter is the box [1, 1]: nearest-neighbour up, 2×2
    mean down. Its buffer is part of the published state dicts.
    """

    resample_filter: Tensor

    def __init__(self, cin: int, cout: int, kernel: int, *, up: bool = False, down: bool = False):
        super().__init__()
        self.up, self.down, self.padding = up, down, kernel // 2
        self.weight = nn.Parameter(torch.empty(cout, cin, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(cout)) if kernel else None
        if up or down:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.down:
            x = F.avg_pool2d(x, 2)
        if self.weight is None or self.bias is None:
            return x
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=self.padding)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise label at `channels / 2` geometric frequencies."""

    def __init__(self, channels: int, *, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device)
        angles = torch.outer(x, (1 / 10000) ** (steps / (half - self.endpoint)))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


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
    ):
        super().__init__()
        self.in_channels, self.out_channels = cin, cout
        self.heads, self.dropout = heads, dropout
        self.skip_scale, self.adaptive = skip_scale, adaptive

        self.norm0 = GroupNorm(cin, eps)
        self.conv0 = Conv2d(cin, cout, 3, up=up, down=down)
        self.affine = Linear(emb, cout * (2 if adaptive else 1))
        self.norm1 = GroupNorm(cout, eps)
        self.conv1 = Conv2d(cout, cout, 3)
        self.skip = None
        if cin != cout or up or down:
            kernel = 1 if resample_proj or cin != cout else 0
            self.skip = Conv2d(cin, cout, kernel, up=up, down=down)
        if heads:
            self.norm2 = GroupNorm(cout, eps)
            self.qkv = Conv2d(cout, cout * 3, 1)
            self.proj = Conv2d(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        skip = x if self.skip is None else self.skip(x)
        x = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            x = F.silu(shift + self.norm1(x) * (scale + 1))
        else:
            x = F.silu(self.norm1(x + modulation))
        x = self.conv1(F.dropout(x, self.dropout, self.training))
        x = (x + skip) * self.skip_scale
        if self.heads:
            x = (self.proj(self._attend(self.norm2(x))) + x) * self.skip_scale
        return x

    def _attend(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # q, k and v are interleaved inside each channel of a head, not stored one after the other.
        qkv = self.qkv(x).reshape(b, self.heads, c // self.heads, 3, h * w)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(3))
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
