"""EDM: the preconditioned network, and EDM checkpoints as models."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bdia_exp.errors import UserError, brief
from bdia_exp.models import (
    Classes,
    Condition,
    OfPixels,
    descriptions,
    parameter_count,
    require_guidance,
)
from bdia_exp.models.running import Running, number
from bdia_exp.models.unets import DhariwalUNet, SongUNet
from bdia_exp.samplers.core import Denoiser, Estimate, Level
from bdia_exp.samplers.guidance import guided
from bdia_exp.samplers.schedules import DiscreteVP, linear_vp
from bdia_exp.sources import checkpoints


class EDMPrecond(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise) [EDM 7].

    Called as `net(x, sigma, labels)`: x [B, C, R, R] in the data's units (pixels in [-1, 1]),
    sigma a number or [B], labels one-hot [B, label_dim] or None (no class given). Returns the
    denoised image, float32 [B, C, R, R].

    With `use_fp16` the body of the network runs in float16 on CUDA and in float32 on the CPU, as
    the published ImageNet-64 model does; set `body_dtype` to choose another.

    Raises ValueError for a `model_type` or network option that the released models do not use.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs,
    ):
        super().__init__()
        networks = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
        if model_type not in networks:
            raise ValueError(f"model_type={model_type!r} is not one of {', '.join(networks)}")
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min:g} must be less than sigma_max={sigma_max:g}")
        self.img_resolution, self.img_channels, self.label_dim = (
            img_resolution,
            img_channels,
            label_dim,
        )
        self.use_fp16, self.sigma_data = use_fp16, sigma_data
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.body_dtype: torch.dtype | None = None
        self.model = networks[model_type](
            img_resolution, img_channels, img_channels, label_dim, **model_kwargs
        )

    def forward(self, x, sigma, class_labels=None, **model_kwargs) -> Tensor:
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        if self.label_dim:
            if class_labels is None:
                class_labels = torch.zeros(1, self.label_dim, device=x.device)
            class_labels = class_labels.to(torch.float32).reshape(-1, self.label_dim)
        else:
            class_labels = None
        half = torch.float16 if self.use_fp16 and x.is_cuda else torch.float32

        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        c_noise = (sigma.log() / 4).flatten().expand(x.shape[0])
        body = (c_in * x).to(self.body_dtype or half)
        return c_skip * x + c_out * self.model(body, c_noise, class_labels, **model_kwargs).float()


NEEDED = ("img_resolution", "img_channels")
"""Arguments that a checkpoint must have."""
DEFAULTS = {
    "label_dim": 0,
    "use_fp16": False,
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "sigma_min": 0.0,
    "sigma_max": math.inf,
    "sigma_data": 0.5,
}
"""Arguments that a checkpoint may leave out: the values of EDM's ImageNet model."""
PROMISED = ("sigma_min", "sigma_max", "sigma_data")
"""Arguments that have their default value in every network that a configuration describes."""

SIGMA_AT_CLEAN = 0.002
"""The σ at which the network is evaluated for σ = 0: the smallest of EDM's own grid, or the
smallest that the network supports."""


class EDM(OfPixels):
    """An EDM network as a `Model`. It accepts every level, as D(z/α; σ/α).

    `schedule` is used only to choose grids; the network gets no VP times. It supports the σ/α that
    the network does.
    """

    def __init__(
        self,
        net: EDMPrecond,
        schedule: DiscreteVP,
        provenance: Mapping[str, object],
        running: Running | None = None,
    ):
        self.net, self.provenance = net, provenance
        self._call = (running or Running()).caller(net)
        self.schedule = DiscreteVP(schedule.abar, supported=(net.sigma_min, net.sigma_max))
        self.networks: Mapping[str, nn.Module] = {"U-Net": net}
        self.shape = (net.img_channels, net.img_resolution, net.img_resolution)
        self.image_shape = self.shape
        self.num_classes = net.label_dim
        self.takes_guidance = bool(net.label_dim and net.model.label_dropout)
        self.device = next(net.parameters()).device

    def denoiser(self, condition: Condition) -> Denoiser:
        """One evaluation is one call of the network, with two rows per image if there is guidance.

        Guidance of the denoised image is guidance of ε, which is a linear function of it. Raises
        UserError for guidance of a network that was not trained for it.
        """
        guidance, labels = 1.0, condition
        if isinstance(condition, Classes):
            require_guidance(self, condition.guidance)
            guidance, labels = condition.guidance, condition.labels
        classes: list[Tensor] = []
        if isinstance(labels, Tensor):
            onehot = one_hot(labels.to(self.device), self.num_classes).float()
            rows = [onehot] if guidance == 1 else [torch.zeros_like(onehot), onehot]
            classes = [torch.stack(rows, 1)]

        def denoise(z: Tensor, level: Level) -> Estimate:
            if level.is_noise:
                raise UserError(
                    "an EDM network cannot take pure noise (alpha = 0): choose grid=karras"
                )
            sigma = level.rho or max(SIGMA_AT_CLEAN, self.net.sigma_min)
            z_ve = z / level.alpha

            def network(x: Tensor, *classes: Tensor) -> Tensor:
                return self._call(x, number(sigma, self.device), *classes).to(z.dtype)

            x = guided(network, z_ve, guidance, *classes)
            return Estimate(level, z, (z_ve - x) / sigma)

        return denoise

    def decode(self, z: Tensor) -> Tensor:
        """EDM's rounding: 127.5 x + 128, clipped and truncated [EDM generate]."""
        return (z * 127.5 + 128).clip(0, 255).to(torch.uint8)


def load(
    checkpoint: str,
    *,
    network: dict[str, Any] | None = None,
    **how: Any,
) -> EDM:
    """An EDM checkpoint, ours (.safetensors) or NVIDIA's (.pkl), ready to sample.

    `how` are the arguments of `Running`: device, dtype, …. dtype="auto" is the checkpoint's own
    choice (float32, or float16 on CUDA if it says so); the state is always float64. `network`
    contains arguments of `EDMPrecond` that the checkpoint must have. With device="meta" the network
    has no weights, and the checkpoint need not exist if `network` is given.

    Raises UserError if the file is missing, damaged, not an EDM network, or not this one.
    """
    running = Running(**how)
    on_meta = running.device == "meta"
    file = None if on_meta and network else checkpoints.read(checkpoints.locate(checkpoint))
    if file and not file.config:
        raise UserError(
            f"{checkpoint} has weights but does not say of which network: give one of EDM's .pkl "
            "files, or a .safetensors with its description, a .json of the same name"
        )
    config = file.config if file else {**(network or {})}
    fields = descriptions.SONG if config.get("model_type") == "SongUNet" else descriptions.EDM
    net = descriptions.build(EDMPrecond, config, fields, NEEDED, checkpoint)
    promised = {**{key: DEFAULTS[key] for key in PROMISED}, **network} if network else {}
    for key, value in promised.items():
        if config.get(key, DEFAULTS.get(key)) != value:
            raise UserError(
                f"{checkpoint} is not the network that model= promises: its {key} is "
                f"{brief(config.get(key))}, not {value}; give model=edm for another"
            )
    provenance: dict[str, object] = {"parameters": parameter_count(net)}
    if file and not on_meta:
        checkpoints.load_into(net, file)
        provenance |= {"checkpoint": file.path.name, "sha256": file.sha256}
        if beside := checkpoints.description(checkpoint):
            provenance["description"] = checkpoints.sha256(checkpoints.locate(beside))
    if running.dtype != "auto":
        net.body_dtype = running.body
    return EDM(running.ready(net), linear_vp(), provenance, running)
