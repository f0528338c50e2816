"""The U-Nets of EDM: `SongUNet` (DDPM++) and `DhariwalUNet` (ADM).

Written from the equations and from the parameter names and shapes of the published checkpoints,
so that those weights load by name. What the released models do not use (NCSN++'s residual
encoder, Fourier embedding, wider resampling filters) is refused rather than approximated.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """`nn.Linear` whose parameters follow the dtype of their input."""

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

    `kernel=0` is the resampling alone. The resampling filter is the box [1, 1]: its buffer is
    part of the published state dicts, its action is nearest-neighbour up and 2×2 mean down.
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


class _UNet(nn.Module):
    """What the two U-Nets share: the walk down, the walk up and the skip connections."""

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def _build(
        self,
        resolution: int,
        cin: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        *,
        first: int,
        emb: int,
        heads_of,
        attend_last_only: bool,
        **block,
    ) -> int:
        """Fills `enc` and `dec`; returns the channels that leave the decoder."""
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        levels = list(enumerate(widths))

        def add(to: nn.ModuleDict, name: str, cin: int, cout: int, attention: bool, **kw) -> int:
            heads = heads_of(cout) if attention else 0
            to[name] = UNetBlock(cin, cout, emb, heads=heads, **kw, **block)
            return cout

        self.enc[f"{resolution}x{resolution}_conv"] = Conv2d(cin, first, 3)
        skips, c = [first], first
        for level, width in levels:
            r = resolution >> level
            if level:
                skips.append(add(self.enc, f"{r}x{r}_down", c, c, False, down=True))
            for i in range(num_blocks):
                c = add(self.enc, f"{r}x{r}_block{i}", c, width, r in attn_resolutions)
                skips.append(c)
        for level, width in reversed(levels):
            r = resolution >> level
            if level == len(widths) - 1:
                add(self.dec, f"{r}x{r}_in0", c, c, True)
                add(self.dec, f"{r}x{r}_in1", c, c, False)
            else:
                add(self.dec, f"{r}x{r}_up", c, c, False, up=True)
            for i in range(num_blocks + 1):
                attention = r in attn_resolutions and (i == num_blocks or not attend_last_only)
                c = add(self.dec, f"{r}x{r}_block{i}", c + skips.pop(), width, attention)
        return c

    def _walk(self, x: Tensor, emb: Tensor) -> Tensor:
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            if isinstance(block, UNetBlock):
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        return x


class SongUNet(_UNet):
    """DDPM++ as EDM's "vp" models use it [EDM Table 1].

    forward(x [B, C, R, R], noise_labels [B], class_labels [B, label_dim] or None,
    augment_labels [B, augment_dim] or None) -> [B, C, R, R]
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ):
        super().__init__()
        _only("embedding_type", embedding_type, "positional")
        _only("encoder_type", encoder_type, "standard")
        _only("decoder_type", decoder_type, "standard")
        _only("resample_filter", list(resample_filter), [1, 1])
        self.label_dropout = label_dropout
        emb = model_channels * channel_mult_emb
        noise = model_channels * channel_mult_noise

        self.map_noise = PositionalEmbedding(noise, endpoint=True)
        self.map_label = Linear(label_dim, noise) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise, emb)
        self.map_layer1 = Linear(emb, emb)
        width = self._build(
            img_resolution,
            in_channels,
            [model_channels * m for m in channel_mult],
            num_blocks,
            attn_resolutions,
            first=model_channels,
            emb=emb,
            heads_of=lambda c: 1,
            attend_last_only=True,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_proj=True,
            adaptive=False,
        )
        tail = f"{img_resolution}x{img_resolution}_aux"
        self.dec[f"{tail}_norm"] = GroupNorm(width, 1e-6)
        self.dec[f"{tail}_conv"] = Conv2d(width, out_channels, 3)
        self._tail = (f"{tail}_norm", f"{tail}_conv")
        _initialise(self, nn.init.xavier_uniform_, gain=1.0, zero=1e-5)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        emb = self.map_noise(noise_labels)
        sine_first = emb.reshape(emb.shape[0], 2, -1).flip(1)
        emb = sine_first.reshape(emb.shape)
        if self.map_label is not None:
            labels = _drop_labels(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        norm, conv = self._tail
        return self.dec[conv](F.silu(self.dec[norm](self._walk(x, emb))))


class DhariwalUNet(_UNet):
    """ADM as EDM's ImageNet-64 model uses it. `forward` as for `SongUNet`."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ):
        super().__init__()
        self.label_dropout = label_dropout
        emb = model_channels * channel_mult_emb
        widths = [model_channels * m for m in channel_mult]

        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb)
        self.map_layer1 = Linear(emb, emb)
        self.map_label = Linear(label_dim, emb, bias=False) if label_dim else None
        width = self._build(
            img_resolution,
            in_channels,
            widths,
            num_blocks,
            attn_resolutions,
            first=widths[0],
            emb=emb,
            heads_of=lambda c: c // 64,
            attend_last_only=False,
            dropout=dropout,
            skip_scale=1.0,
            eps=1e-5,
            resample_proj=False,
            adaptive=True,
        )
        self.out_norm = GroupNorm(width, 1e-5)
        self.out_conv = Conv2d(width, out_channels, 3)
        _initialise(self, nn.init.kaiming_uniform_, gain=math.sqrt(1 / 3), zero=0.0)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            labels = _drop_labels(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels)
        return self.out_conv(F.silu(self.out_norm(self._walk(x, F.silu(emb)))))


def _only(name: str, value, supported) -> None:
    if value != supported:
        raise ValueError(
            f"{name}={value!r} is not supported: the released EDM models use {supported!r}"
        )


def _drop_labels(labels: Tensor, probability: float, training: bool) -> Tensor:
    """Zeroes whole labels at random while training, for classifier-free guidance."""
    if not (training and probability):
        return labels
    keep = torch.rand(labels.shape[0], 1, device=labels.device) >= probability
    return labels * keep


def _initialise(net: nn.Module, scheme, *, gain: float, zero: float) -> None:
    """Weights by `scheme` times `gain`; the last layer of every residual branch near zero."""
    for name, module in net.named_modules():
        if not isinstance(module, (Linear, Conv2d)) or module.weight is None:
            continue
        scheme(module.weight)
        last = name.endswith((".conv1", ".proj", "_aux_conv", "out_conv"))
        attention = name.endswith(".qkv") and isinstance(net, SongUNet)
        with torch.no_grad():
            module.weight.mul_(zero if last else math.sqrt(0.2) if attention else gain)
            if module.bias is not None:
                module.bias.zero_()
