"""EDM: the preconditioned network."""

import math

import torch
from torch import Tensor, nn

from bdia_exp.models.unets import DhariwalUNet, SongUNet


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


def parameter_count(net: nn.Module) -> int:
    """Trainable numbers in the network (buffers not counted)."""
    return sum(p.numel() for p in net.parameters())
