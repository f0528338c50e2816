"""The U-Nets of EDM: `SongUNet` (DDPM++ and NCSN++) and `DhariwalUNet` (ADM).

Written from the equations and from the parameter names and shapes of the published checkpoints,
whose weights load by name. Two options of EDM's program that none of its published networks uses
are refused: skip connections of images in the encoder or in the decoder.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdia_exp.models.descriptions import require_halvings
from bdia_exp.models.layers import (
    Conv2d,
    FourierEmbedding,
    Linear,
    PositionalEmbedding,
    UNetBlock,
    edm_norm,
)

EMBEDDINGS: dict[str, Callable[[int], nn.Module]] = {
    "positional": partial(PositionalEmbedding, endpoint=True),
    "fourier": FourierEmbedding,
}
"""The embeddings of the noise label in a `SongUNet`, by name."""
_RESIDUAL = "_aux_residual"
"""How the names of the residual encoder's convolutions end."""


class _UNet(nn.Module):
    """What the two U-Nets share: the encoder, the decoder and the skip connections."""

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
        residual: bool = False,
        **block,
    ) -> int:
        """Fills `enc` and `dec`; returns the number of the decoder's output channels.

        With `residual` every lower resolution of the encoder also gets the one above it, through
        a convolution that halves it; the first of these gets the image.
        """
        require_halvings(resolution, len(widths) - 1)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        levels = list(enumerate(widths))

        def add(to: nn.ModuleDict, name: str, cin: int, cout: int, attention: bool, **kw) -> int:
            heads = heads_of(cout) if attention else 0
            to[name] = UNetBlock(cin, cout, emb, heads=heads, **kw, **block)
            return cout

        self.enc[f"{resolution}x{resolution}_conv"] = Conv2d(cin, first, 3)
        skips, c, above = [first], first, cin
        for level, width in levels:
            r = resolution >> level
            if level:
                skips.append(add(self.enc, f"{r}x{r}_down", c, c, False, down=True))
            if level and residual:
                self.enc[f"{r}x{r}{_RESIDUAL}"] = Conv2d(
                    above, c, 3, down=True, resample_last=True, taps=block["taps"]
                )
                above = c
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
        skips: list[Tensor] = []
        above = x
        for name, block in self.enc.items():
            if name.endswith(_RESIDUAL):
                x = skips[-1] = above = (x + block(above)) / math.sqrt(2)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)
        for name, block in self.dec.items():
            if isinstance(block, UNetBlock):
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        return x


class SongUNet(_UNet):
    """DDPM++ and NCSN++, the networks of EDM's "vp" and "ve" models [EDM Table 1].

    The defaults are DDPM++. NCSN++ has embedding_type="fourier", encoder_type="residual",
    channel_mult_noise=2 and resample_filter=[1, 3, 3, 1].

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
        _only("embedding_type", embedding_type, *EMBEDDINGS)
        _only("encoder_type", encoder_type, "standard", "residual")
        _only("decoder_type", decoder_type, "standard")
        self.label_dropout = label_dropout
        emb = model_channels * channel_mult_emb
        noise = model_channels * channel_mult_noise

        self.map_noise = EMBEDDINGS[embedding_type](noise)
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
            residual=encoder_type == "residual",
            taps=resample_filter,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_proj=True,
            adaptive=False,
        )
        tail = f"{img_resolution}x{img_resolution}_aux"
        self.dec[f"{tail}_norm"] = edm_norm(width, 1e-6)
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
        return self.dec[conv](F.silu(self.dec[norm](self._walk(x, emb)), inplace=True))


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
        self.out_norm = edm_norm(width, 1e-5)
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
        return self.out_conv(F.silu(self.out_norm(self._walk(x, F.silu(emb))), inplace=True))


def _only(name: str, value: str, *supported: str) -> None:
    if value not in supported:
        raise ValueError(f"{name}={value} is not supported: only {' and '.join(supported)}")


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
