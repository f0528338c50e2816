"""The texts of a run: those that its images are made from, or inverted and edited with."""

from collections.abc import Sequence
from dataclasses import dataclass

from bdia_exp.errors import UserError
from bdia_exp.jobs.controls import Control
from bdia_exp.jobs.settings import Drawing, Editing, Inverting, Solving
from bdia_exp.models import Model, Text
from bdia_exp.sources import prompts
from bdia_exp.sources.prompts import Prompts
from bdia_exp.store.records import Record


@dataclass(frozen=True)
class Texts:
    """The condition of a text-to-image run: prompts, and the ControlNet's pictures."""

    prompts: Prompts
    control: Control | None = None

    @classmethod
    def of(cls, model: Model, asked: Drawing) -> "Texts | None":
        """The texts for a model; None if it takes no text.

        Raises UserError if the model cannot use these settings.
        """
        text, source = asked.prompt, asked.prompts
        if not model.takes_text:
            require_no_text(asked, "prompt", "prompts", "control")
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
        control = None if asked.control is None else Control.of(asked.control, model.image_shape)
        if control and text is None and asked.prompts_seed is not None:
            control.require_one()
        return cls(chosen, control)

    def __call__(self, seeds: Sequence[int], guidance: float = 1.0) -> Text:
        """The condition of the images of these seeds."""
        control = self.control(seeds) if self.control else None
        return Text(self.prompts_of(seeds), guidance, control)

    def prompts_of(self, seeds: Sequence[int]) -> list[str]:
        """The prompts of the images of these seeds, without reading a picture."""
        return [self.prompts(seed) for seed in seeds]

    @property
    def provenance(self) -> Record:
        """What a record keeps of the texts and pictures."""
        return {
            "prompts": dict(self.prompts.provenance),
            "control_pixels": self.control.sha256 if self.control else None,
        }


def guidance_of(asked: Solving) -> Record:
    """What a record keeps of a guidance: its scale, and the rows of an image in an evaluation."""
    if asked.guidance is None:
        return {}
    return {"guidance": asked.guidance, "rows_per_evaluation": 1 if asked.guidance == 1 else 2}


def require_no_text(asked: Solving, *keys: str) -> None:
    """Raises UserError if one of these keys, which are for models of texts, is given."""
    for key in keys:
        if getattr(asked, key, None) is not None:
            raise UserError(f"{key}=: this model takes no text; leave {key}= out")


def texts_of(
    asked: Inverting, about: Model, count: int
) -> tuple[Prompts | None, int | Prompts | None]:
    """What each of `count` images shows, for a text model, and what an edit makes of it.

    Raises UserError if a text model has no prompts, or another model has some.
    """
    to, pairs = (asked.to, asked.pairs) if isinstance(asked, Editing) else (None, None)
    if not about.takes_text:
        require_no_text(asked, "prompt", "pairs")
        if to is not None and not isinstance(to, int):
            raise UserError(f"to={to}: this model takes no text; give the number of a class")
        return None, to
    if not asked.has_text:
        raise UserError(
            'give prompt="…" for what the images show; prompt="" inverts without a prompt'
        )
    if pairs is not None:
        return _of_each(pairs, count, "prompt"), _of_each(pairs, count, "to")
    target = None if to is None else prompts.of_text(str(to))
    return prompts.of_text(asked.prompt or ""), target


def _of_each(source: str, count: int, column: str) -> Prompts:
    """The prompts in a file's column, one for each image. Raises UserError for another number."""
    found = prompts.read(source, None, column)
    if len(found.captions) != count:
        raise UserError(
            f"pairs={source} has {len(found.captions)} texts in the column {column}, and there are "
            f"{count} images: give one for each, in the order of the images"
        )
    return found
