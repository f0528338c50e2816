"""The pictures that a ControlNet follows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from bdia_exp.errors import UserError, nearest
from bdia_exp.jobs.asked import computed_from
from bdia_exp.models.edges import canny
from bdia_exp.sources import checkpoints
from bdia_exp.store.image_sets import ImageSet

KINDS = {"canny": canny}
"""What can be computed from pictures, and the function of uint8 pixels that does it."""


def computed(source: str) -> tuple[str | None, str]:
    """What control= computes from pictures (None: nothing), and the name of the pictures.

    Raises UserError if nothing of this kind can be computed, or if there is no name.
    """
    kind, name = computed_from(source)
    if kind is not None and kind not in KINDS:
        raise UserError(f"control={source}: nothing called {kind!r} is known{nearest(kind, KINDS)}")
    if not name:
        raise UserError(f"control={source}: name the picture, control=auto:{kind}:photo.png")
    return kind, name


@dataclass(frozen=True)
class Control:
    """A picture for all images, or several: then image k follows picture k, modulo their number.

    They are cropped to their middle and resized to the images' size; then edges are computed, if
    they are asked for.
    """

    pictures: ImageSet
    kind: str | None
    """One of KINDS, computed from the pictures; None: the pictures as they are."""

    @classmethod
    def of(cls, source: str, shape: tuple[int, int, int]) -> "Control":
        """The pictures that control= names, for images of this shape (C, H, W).

        Raises UserError if they cannot be read, and as `computed` does.
        """
        kind, name = computed(source)
        return cls(ImageSet(checkpoints.located(name), fit=shape), kind)

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W] for these seeds; [1, 3, H, W] if all have the same picture."""
        count = len(self.pictures)
        images = self.pictures.read([0] if count == 1 else [seed % count for seed in seeds])
        return KINDS[self.kind](images) if self.kind else images

    def require_one(self) -> None:
        """Raises UserError for several pictures: chosen prompts would not be of the same images."""
        if (count := len(self.pictures)) > 1:
            raise UserError(
                f"control= has {count} pictures, one for each image, so the prompts must keep "
                "their order, too: add prompts_seed=null"
            )

    @cached_property
    def sha256(self) -> str:
        """Of the pixels that the ControlNet gets."""
        state = hashlib.sha256()
        for row in range(len(self.pictures)):
            state.update(self([row]).numpy().tobytes())
        return state.hexdigest()
