"""The edges of pictures, as the input of a ControlNet."""

import torch
from torch import Tensor

from bdia_exp.extras import require

LOW, HIGH = 100, 200
"""Canny's two thresholds, those of ControlNet's own program and of diffusers' examples."""


def canny(images: Tensor) -> Tensor:
    """The edges of uint8 [B, C, H, W] by Canny's method (`cv2.Canny`), C being 1 or 3.

    Returns uint8 [B, 3, H, W], white lines on black. Raises UserError if OpenCV is not installed.
    """
    cv2 = require("cv2")
    drawn = [cv2.Canny(image.permute(1, 2, 0).contiguous().numpy(), LOW, HIGH) for image in images]
    return torch.stack([torch.from_numpy(lines).expand(3, -1, -1) for lines in drawn])
