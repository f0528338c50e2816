"""How far two sets of images of the same seeds differ, as numbers."""

from measuring import Row
from torch import Tensor


def agreement(a: Tensor, b: Tensor) -> Row:
    """Of two sets of uint8 images: largest and mean difference, and the share of other pixels."""
    apart = (a.cpu().int() - b.cpu().int()).abs()
    return {
        "largest difference": int(apart.max()),
        "mean difference": float(apart.double().mean()),
        "pixels that differ, %": 100 * float((apart > 0).double().mean()),
    }


def agrees(found: Row) -> bool:
    """At most one level, on at most 0.1 % of the pixels."""
    return found["largest difference"] <= 1 and found["pixels that differ, %"] <= 0.1
