"""The condition of a text-to-image run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.jobs.settings import Drawing, Solving
from bdia_exp.models import Model, Text, require_guidance
from bdia_exp.sources import prompts
from bdia_exp.sources.prompts import Prompts
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.records import Record


@dataclass(frozen=True)
class Texts:
    """The condition of a text-to-image run: prompts, guidance, and the ControlNet's image."""

    prompts: Prompts
    guidance: float
    control: Tensor | None = None  # uint8 [1, 3, H, W]

    @classmethod
    def of(cls, model: Model, asked: Drawing) -> "Texts | None":
        """The condition for a model; None if it takes no text.

        Raises UserError if the model cannot use these settings.
        """
        text, source = asked.prompt, asked.prompts
        if not model.takes_text:
            require_no_text(asked, "prompt", "prompts", "control", "guidance")
            return None
        if text is not None:
            chosen = prompts.of_text(text)
        elif source is not None:
            chosen = prompts.read(source, asked.prompts_seed)
        else:
            raise UserError(
                'give prompt="what the images show", or prompts=FILE with a caption for each'
            )
        if (asked.control is None) != ("ControlNet" not in model.networks):
            raise UserError(
                "a ControlNet and its image go together: give control= with condition=controlnet"
            )
        assert asked.guidance is not None  # there is a text
        require_guidance(asked.guidance)
        return cls(chosen, asked.guidance, control_image(model, asked.control))

    def __call__(self, seeds: Sequence[int]) -> Text:
        """The condition of the images of these seeds."""
        return Text([self.prompts(seed) for seed in seeds], self.guidance, self.control)

    @property
    def provenance(self) -> Record:
        """What a record keeps of the condition."""
        control = None
        if self.control is not None:
            control = hashlib.sha256(self.control.numpy().tobytes()).hexdigest()
        rows = 1 if self.guidance == 1 else 2
        return {
            "prompts": dict(self.prompts.provenance),
            "guidance": self.guidance,
            "control_pixels": control,
            "rows_per_evaluation": rows,
        }


def require_no_text(asked: Solving, *keys: str) -> None:
    """Raises UserError if one of these keys, which are for models of texts, is given."""
    for key in keys:
        if getattr(asked, key) is not None:
            raise UserError(f"{key}=: this model takes no text; leave {key}= out")


def control_image(model: Model, source: str | None) -> Tensor | None:
    """A ControlNet's image, uint8 [1, 3, H, W], cropped and resized to the model's size."""
    if source is None:
        return None
    return ImageSet(source, fit=model.image_shape).read([0])
