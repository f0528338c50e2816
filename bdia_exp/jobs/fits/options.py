"""The options of a fit, and what they are if nobody chose them."""

from dataclasses import dataclass

from bdia_exp.console import one_of, positive
from bdia_exp.errors import UserError
from bdia_exp.jobs.coefficients import KEYS
from bdia_exp.samplers.core import Sampler
from bdia_exp.samplers.fitted import Bounds
from bdia_exp.samplers.iia_edm import averaged
from bdia_exp.samplers.loops import heun
from bdia_exp.samplers.targets import FINE
from bdia_exp.seeds import MOST as MOST_SEEDS

FIRST_SEED = 3_000_000_000
"""The first seed of a fit: far from those of tables and of users."""
IMAGES = {averaged: 200, heun: 200}
"""The paper's batches of starting noises: 200 for EDM's sampler, else 16."""
FEWEST = 16
TARGETS = ("global", "local", "variance", "features")
FRACTIONS = 64
"""The usual largest denominator of a fitted γ: short enough for many steps in fixed point."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The batch of a fit, its target and the bounds of its coefficients."""

    images: int | None = None
    """None: 200 for EDM's sampler, 16 for others, as in the paper."""
    held_out: int | None = None
    """Other noises, on which the result is measured; None: as many as `images`."""
    first_seed: int = FIRST_SEED
    target: str = "global"
    parts: int = 3
    """Smaller steps of the local target."""
    fine: int = FINE
    """Steps of the fine solution."""
    within: list | None = None
    """The least and the greatest coefficient."""
    denominator: int | None = None
    """Coefficients are rounded to fractions with at most this denominator."""
    judged: int | None = None
    """Images that the search for features looks at; None: 8 for each dimension."""
    trials: int | None = None
    """Coefficients that the search for features tries; None: 20 for each coefficient."""

    def __post_init__(self) -> None:
        for key in ("images", "held_out", "parts", "fine", "denominator", "judged", "trials"):
            positive(f"fit.{key}", getattr(self, key), MOST_SEEDS)
        one_of("fit.target", self.target, TARGETS)
        if self.target == "local" and self.parts < 2:
            raise UserError(
                "fit.parts=1 is the step itself, so there is nothing to fit: give 2 or more"
            )
        if not 0 <= self.first_seed < MOST_SEEDS:
            raise UserError(f"fit.first_seed={self.first_seed} must be 0 or more, below 2^32")
        bounds = self.within
        if bounds is None:
            return
        numbers = len(bounds) == 2 and all(isinstance(each, (int, float)) for each in bounds)
        if not numbers or not bounds[0] < bounds[1]:
            raise UserError(f"fit.within={bounds} must be two numbers, such as [0.1,2]")


def key_of(sampler: Sampler) -> str:
    """The argument that a fit finds: the coefficients of columns, or BDIA's γ.

    Raises UserError if the sampler has neither.
    """
    given = getattr(sampler, "keywords", {})
    if given.get("columns"):
        return KEYS[0]
    if "gamma" in given:
        return KEYS[1]
    raise UserError(
        "this sampler has no coefficients: choose one of iia_edm, biia_edm, iia_ddim, iia_spndm, "
        "iia_ipndm, iia_dpmpp, ab_fitted, or one with a γ, such as bdia_ddim"
    )


def bounds_of(options: FitOptions) -> Bounds:
    """The bounds of the coefficients."""
    within = (float(options.within[0]), float(options.within[1])) if options.within else None
    return Bounds(within, options.denominator)


def images_of(sampler: Sampler, options: FitOptions) -> int:
    """The number of starting noises of a fit."""
    usual = IMAGES.get(getattr(sampler, "func", sampler), FEWEST)
    return options.images or usual


def seeds_of(sampler: Sampler, options: FitOptions, more: int = 0) -> tuple[range, range]:
    """The seeds of a fit, and those held out. Raises UserError if they, or `more`, end too late."""
    images = images_of(sampler, options)
    seeds = range(options.first_seed, options.first_seed + images)
    others = range(seeds.stop, seeds.stop + (options.held_out or images))
    if (end := others.stop + more) > MOST_SEEDS:
        raise UserError(
            f"fit.first_seed={options.first_seed}: the seeds of this fit end at {end - 1}, and "
            "must be below 2^32: give a smaller one"
        )
    return seeds, others


def usual(sampler: Sampler) -> FitOptions:
    """The options of a fit that nobody chose. A γ is a short fraction above 0: it can be undone."""
    if key_of(sampler) == "gamma":
        return FitOptions(within=[0.05, 2.0], denominator=FRACTIONS)
    return FitOptions()
