"""Images resized for scoring: squares of one size, by OpenCV."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bdia_exp.extras import require


def squares(images: Sequence[Tensor] | Tensor, side: int) -> Tensor:
    """Images, each uint8 [C, H, W] of any size, as uint8 [B, 1 or 3, side, side].

    They become RGB unless all are grey. The shorter side of each is resized to `side` pixels by
    area averaging (`cv2.resize`, INTER_AREA), the longer one in proportion, to the nearest pixel.
    Then the middle square is cropped. An image whose shorter side is `side` is not resized.

    Raises UserError if OpenCV is needed and is not installed.
    """
    channels = max((image.shape[0] for image in images), default=1)
    made = [_square(image, side, channels) for image in images]  # OpenCV has its own threads
    return torch.stack(made) if made else torch.empty(0, channels, side, side, dtype=torch.uint8)


def _square(image: Tensor, side: int, channels: int) -> Tensor:
    image = image.expand(channels, -1, -1).cpu()
    height, width = image.shape[1:]
    shorter = min(height, width)
    if shorter != side:
        image = _by_area(image, round(height * side / shorter), round(width * side / shorter))
        height, width = image.shape[1:]
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def _by_area(image: Tensor, height: int, width: int) -> Tensor:
    cv2 = require("cv2")
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    made = cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(made.reshape(height, width, -1)).permute(2, 0, 1)
