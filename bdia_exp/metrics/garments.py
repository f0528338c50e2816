"""What a prompt for `mini_sd` asks for, a garment and a colour, and what an image has of it."""

import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bdia_exp.metrics.colours import TINTS, colour_of

NAMES = (
    ("t-shirt", "top"),
    ("trousers", "pants"),
    ("pullover", "sweater"),
    ("dress",),
    ("coat",),
    ("sandal",),
    ("shirt",),
    ("sneaker",),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
"""The names of each class, by its number."""
CLASS_OF = {name.split()[-1]: k for k, names in enumerate(NAMES) for name in names}
COLOUR_OF = {name: k for k, name in enumerate(TINTS)}
NOTHING = -1


def asked_of(prompt: str) -> tuple[int, int]:
    """The class and the colour (its place in `TINTS`) that a prompt names.

    NOTHING for what it does not name, or names twice.
    """
    words = re.findall(r"[a-z]+(?:-shirt)?", prompt.lower())
    return _only(CLASS_OF, words), _only(COLOUR_OF, words)


def _only(known: dict[str, int], words: list[str]) -> int:
    found = {known[word] for word in words if word in known}
    return found.pop() if len(found) == 1 else NOTHING


ASPECTS = ("class", "colour")
"""What is judged of each image, in this order."""


@runtime_checkable
class JudgesPrompts(Protocol):
    """An extractor that can tell whether images are what their prompts ask for."""

    def obeyed(self, images: Tensor, logits: Tensor, prompts: Sequence[str]) -> Tensor:
        """int64 [B, 2], for each of ASPECTS: 1 as asked, 0 not, NOTHING if it was not asked for.

        images: uint8 [B, 3, H, W]; logits: [B, 10], of these images.
        """
        ...


def obeyed(images: Tensor, logits: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same as a function."""
    wanted = torch.tensor([asked_of(prompt) for prompt in prompts])
    seen = torch.stack([logits.argmax(1).cpu(), colour_of(images).cpu()], 1)
    return torch.where(wanted == NOTHING, NOTHING, (seen == wanted).long())


def shares_of(right: Tensor, judged: Tensor) -> dict[str, float]:
    """The share of images that are as asked, for each of ASPECTS that was asked for.

    right, judged: the numbers of images, [2] each.
    """
    both = zip(ASPECTS, right.tolist(), judged.tolist(), strict=True)
    return {name: yes / of for name, yes, of in both if of}


INK = 25
"""A pixel whose largest channel is above this belongs to the garment; the rest is black."""


def change_outside(images: Tensor, others: Tensor) -> float:
    """The RMS difference of uint8 images [B, 3, H, W] from `others`, where these have no garment.

    0 if there is no such pixel.
    """
    outside = (others.amax(1, keepdim=True) <= INK).expand_as(others)
    wrong = (images.double() - others.double())[outside]
    return float(wrong.square().mean().sqrt()) if len(wrong) else 0.0
