"""The bundled feature network: a small classifier of 32×32 grey images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Blocks of 3×3 convolution, batch norm and ReLU, halving the image between them.

    `net(images)`: uint8 [B, C, H, W] → features float32 [B, widths[-1]], the last block's output
    averaged over the image, and logits float32 [B, classes].
    """

    def __init__(self, channels: int, widths: Sequence[int], classes: int):
        super().__init__()
        blocks: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip([channels, *widths], widths, strict=False)):
            blocks += [nn.MaxPool2d(2)] if i else []
            blocks += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)]
            blocks += [nn.BatchNorm2d(c_out), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.blocks(images.to(torch.float32) / 127.5 - 1).mean((2, 3))
        return features, self.head(features)
