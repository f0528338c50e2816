"""The colours of the small text-to-image model: a grey garment on black, times a tint.

Every tint's largest channel is full. So the largest channel of a tinted image is the grey image
it was made from, and a classifier of grey images can judge it.
"""

import torch
from torch import Tensor

TINTS = {
    "red": (255, 26, 26),
    "orange": (255, 128, 0),
    "yellow": (255, 242, 26),
    "green": (26, 255, 51),
    "blue": (26, 77, 255),
    "purple": (166, 26, 255),
    "pink": (255, 102, 204),
    "white": (255, 255, 255),
}


def tinted(grey: Tensor, colours: Tensor) -> Tensor:
    """Grey images uint8 [B, 1, H, W] in colours, given as int [B] by their place in `TINTS`.

    Returns uint8 [B, 3, H, W].
    """
    tint = torch.tensor([*TINTS.values()], device=grey.device)[colours][:, :, None, None]
    return ((grey.int() * tint + 127) // 255).to(torch.uint8)


def grey_of(images: Tensor) -> Tensor:
    """The largest channel of uint8 [B, 3, H, W], as uint8 [B, 1, H, W]: `tinted` undone."""
    return images.amax(1, keepdim=True)


def colour_of(images: Tensor) -> Tensor:
    """The colour of each image uint8 [B, 3, H, W], as int64 [B], the place in `TINTS`.

    It is the tint nearest to the mean colour, both divided by their length. Black counts for
    nothing in the mean.
    """
    tints = torch.tensor([*TINTS.values()], dtype=torch.float64, device=images.device)
    mean = images.double().mean((2, 3))
    unit = mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return (unit @ (tints / tints.norm(dim=1, keepdim=True)).T).argmax(1)
