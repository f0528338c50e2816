"""The settings of each verb: one frozen dataclass per verb, made by the command line or a caller.

A field is a key of the verb's configuration. Functions take the smallest class that they need. A
default here is the value that a record without that key was made with; the defaults of a command
are in its YAML.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bdia_exp.console import one_of, positive
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked, Choice, Phrase, Source
from bdia_exp.jobs.controls import computed
from bdia_exp.jobs.gammas import require_gammas
from bdia_exp.metrics.features import Extractor
from bdia_exp.models import Model, langevin
from bdia_exp.models.running import Running
from bdia_exp.samplers.core import Grid, Sampler
from bdia_exp.samplers.cost import MOST as MOST_STEPS
from bdia_exp.seeds import MOST as MOST_SEEDS
from bdia_exp.seeds import Seeds, parse
from bdia_exp.store.shards import Part

DEFAULT_IMAGES = 64
MANY = 5000
"""From this number of images on, save=shards is usual."""
SAVES = ("folder", "zip", "shards", "scratch", "latents", "none")
MOST_AT_A_TIME = 1 << 16
"""The largest batch, and the largest number of images on a sheet or strip."""


OWN: Choice[Callable[..., Model]] = Choice(
    "own", {"_target_": "bdia_exp.models.langevin.own", "_partial_": True}, langevin.own
)
"""The choice of `diffusion` of every earlier record."""


@dataclass(frozen=True, kw_only=True)
class Solving(Asked):
    """A model, its condition, and how its ODE is solved."""

    model: Choice[Callable[..., Model]]
    sampler: Choice[Sampler]
    grid: Choice[Callable[..., Grid]]
    nfe: int
    class_: int | None = None
    prompt: Phrase | None = None
    guidance: float | None = None
    """With a text, None becomes `usual_guidance`. Without one, 1 becomes None: no guidance."""
    dtype: str = "auto"
    compile: str = "off"
    graphs: str = "off"
    tf32: bool = False
    diffusion: Choice[Callable[..., Model]] = OWN

    usual_guidance: ClassVar[float]

    def __post_init__(self) -> None:
        if self.has_text and self.guidance is None:
            object.__setattr__(self, "guidance", self.usual_guidance)
        elif not self.has_text and self.guidance == 1:
            object.__setattr__(self, "guidance", None)
        super().__post_init__()

    @property
    def has_text(self) -> bool:
        return self.prompt is not None

    def load(self, device: str) -> Model:
        """The model on a device, as a model of the diffusion. Raises UserError if there is none."""
        return self.diffusion.make(self.model.make(**self.how(device)))

    def how(self, device: str) -> dict[str, Any]:
        """How the network is run: the arguments of `Running`, without those that are usual."""
        return {"device": device, **self._with_unusual("compile", "graphs", "tf32")}

    @property
    def rounding(self) -> dict[str, Any]:
        """What of this changes the network's rounding, without what is usual."""
        return self._with_unusual("compile", "tf32")

    def _with_unusual(self, *keys: str) -> dict[str, Any]:
        """The dtype, and those of the keys that do not have their default."""
        values = {key: getattr(self, key) for key in keys}
        return {"dtype": self.dtype} | {
            key: value for key, value in values.items() if value != getattr(Solving, key)
        }

    def check(self) -> None:
        super().check()
        positive("nfe", max(self.nfe, 1), MOST_STEPS)  # a sampler has its own least number
        Running(**self.how("cpu"))
        require_gammas(self.sampler.config)

    @property
    def unused(self) -> set[str]:
        """The fields that change no image, some because another field is not given."""
        return {"graphs"}


@dataclass(frozen=True, kw_only=True)
class Drawing(Solving):
    """All that decides the image of a seed. These fields are the identity of a run of `sample`."""

    prompts: Source | None = None
    prompts_seed: int | None = 0
    control: Source | None = None
    noise_device: str = "cpu"

    usual_guidance = 9.0

    @property
    def has_text(self) -> bool:
        return super().has_text or self.prompts is not None

    def check(self) -> None:
        super().check()
        one_of("noise_device", self.noise_device, ["cpu", "cuda"])
        if self.control is not None:
            computed(self.control)

    @property
    def unused(self) -> set[str]:
        captions = self.prompt is None and self.prompts is not None
        return super().unused | (set() if captions else {"prompts", "prompts_seed"})


@dataclass(frozen=True, kw_only=True)
class Computing(Asked):
    """Settings that change the speed, not the result."""

    batch: int
    device: str

    def check(self) -> None:
        super().check()
        positive("batch", self.batch, MOST_AT_A_TIME)


@dataclass(frozen=True, kw_only=True)
class Comparing(Asked):
    """All that decides the FID of given images."""

    features: Choice[Callable[..., Extractor]]
    reference: Source | None
    resize: int | None


@dataclass(frozen=True, kw_only=True)
class Scoring(Comparing):
    """All that decides the score of given images: the FID and other metrics."""

    metrics: list[str] | str | None
    clip: Source | None


@dataclass(frozen=True, kw_only=True)
class Sampling(Drawing, Scoring, Computing):
    """Which images to generate, how to save them, and whether to score them."""

    images: int | None
    seeds: str | int | None
    out: str | None
    save: str | None
    """None becomes `usual_save`, or what the run's folder has already."""
    sheet: int
    score: bool
    shard: int = 1000
    part: str | int | None = None

    def check(self) -> None:
        super().check()
        if self.save is not None:
            one_of("save", self.save, SAVES)
        positive("shard", self.shard, MOST_SEEDS)
        if self.piece and self.save not in (None, "shards"):
            raise UserError(f"part= makes a part of the shards: give save=shards, not {self.save}")
        if self.seeds is not None and self.images is not None:
            raise UserError("give images= (seeds 0, 1, …) or seeds= (which ones), not both")
        positive("images", self.images, MOST_SEEDS)
        if not 0 <= self.sheet <= MOST_AT_A_TIME:
            raise UserError(f"sheet={self.sheet} must be 0, for no sheet, to {MOST_AT_A_TIME}")
        parse(self.seeds_text)

    @property
    def piece(self) -> Part | None:
        """The part of the run that is made; None for all of it."""
        return Part.parse(str(self.part)) if self.part is not None else None

    @property
    def usual_save(self) -> str:
        """How images are saved if it is not said."""
        return "shards" if self.part or len(self.wanted) >= MANY else "folder"

    @property
    def seeds_text(self) -> str:
        """The seeds as text, as in a record: 0-63."""
        if self.seeds is not None:
            return str(self.seeds)
        return f"0-{(self.images or DEFAULT_IMAGES) - 1}"

    @property
    def wanted(self) -> Seeds:
        """The seeds as numbers. Raises UserError if the text is not a list of seeds."""
        return parse(self.seeds_text)


@dataclass(frozen=True, kw_only=True)
class Inverting(Solving, Computing):
    """Images, and how they are inverted to noise."""

    images: str
    limit: int | None
    strength: float = 1.0
    state: str = "float64"
    ddim_time: str = "target"
    out: str | None
    strip: int

    usual_guidance = 3.0

    @property
    def unused(self) -> set[str]:
        return super().unused | {"class_"}  # the labels of the images include it

    def check(self) -> None:
        super().check()
        positive("strip", self.strip, MOST_AT_A_TIME)
        positive("limit", self.limit)
        if not 0 < self.strength <= 1:
            raise UserError(f"strength={self.strength} must be more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class RoundTrip(Inverting):
    """The same, with an optional folder of `invert` to decode from."""

    states: str | None


@dataclass(frozen=True, kw_only=True)
class Editing(RoundTrip):
    """The same, with the class or prompt of the edited images."""

    to: int | Phrase | None = None
    pairs: Source | None = None
    """A file with the prompts of each image: what it shows, and what it becomes."""
    features: Choice[Callable[..., Extractor]]
    classify: bool = False

    @property
    def has_text(self) -> bool:
        return super().has_text or self.pairs is not None

    def check(self) -> None:
        super().check()
        if (self.to is None) == (self.pairs is None):
            raise UserError(
                "give to=, the new class or the new prompt, or pairs=FILE with the prompts of each "
                "image"
            )
        if self.pairs is not None and self.prompt is not None:
            raise UserError("pairs= has the prompts of the images: leave prompt= out")
