"""Models whose operations and memory can be counted by hand; they run without weights."""

import torch
from torch import nn

from bdia_exp.samplers.core import Estimate
from bdia_exp.samplers.schedules import linear_vp

EVALUATION = 2 * 3 * 5 * 9 * 8 * 8
"""Operations of the convolution, for one image."""
DECODING = 2 * 3 * 3 * 64 * 64


class OneConvolution:
    """A model whose operations can be counted by hand."""

    shape, num_classes, takes_text, takes_guidance = (3, 8, 8), 0, False, False
    schedule = linear_vp()

    def __init__(self, device: str, dtype: str):
        net = nn.Conv2d(3, 5, 3, padding=1, device=device).requires_grad_(False)
        net.register_buffer("shift", torch.zeros(7, dtype=torch.float16, device=device))
        self.net, self.networks = net, {"U-Net": net}

    def denoiser(self, condition):
        return lambda z, level: Estimate(level, z, self.net(z.float())[:, :3])

    def decode(self, z):
        return (z * 127.5 + 128).clip(0, 255).to(torch.uint8)


class Latent(OneConvolution):
    """And one of text to image: guidance evaluates twice, a second network decodes."""

    takes_text = takes_guidance = True

    def __init__(self, device: str, dtype: str):
        super().__init__(device, dtype)
        self.decoder = nn.ConvTranspose2d(3, 3, 8, stride=8, device=device).requires_grad_(False)
        self.networks = {"U-Net": self.net, "VAE": self.decoder}

    def denoiser(self, condition):
        def denoise(z, level):
            assert len(condition.prompts) == len(z)
            twice = torch.cat([z, z]) if condition.guidance != 1 else z
            return Estimate(level, z, self.net(twice.float())[: len(z), :3])

        return denoise

    def decode(self, z):
        assert len(z) == 1, "an image at a time"
        return self.decoder(z.float()).to(torch.uint8)
