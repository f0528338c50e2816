"""Fits the coefficients of a sampler for one model and grid, and writes their file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import median

import torch
from torch import Tensor

from bdia_exp import batching, dist
from bdia_exp.console import one_of, positive, progress, say
from bdia_exp.errors import UserError
from bdia_exp.jobs import coefficients
from bdia_exp.jobs.coefficients import AUTO, KEYS, file_of, is_automatic
from bdia_exp.jobs.identity import automatic, fitted_for
from bdia_exp.jobs.problems import last
from bdia_exp.jobs.sampling import Job, Texts, levels_of
from bdia_exp.jobs.settings import Drawing, Solving
from bdia_exp.samplers.core import Counted, Denoiser, Estimate, Level, Sampler
from bdia_exp.samplers.fitted import Fit, Step, Target, Watch, rms
from bdia_exp.samplers.iia_edm import averaged
from bdia_exp.samplers.loops import heun
from bdia_exp.samplers.targets import FINE, Fine, Global, Local, fine_levels
from bdia_exp.seeds import MOST as MOST_SEEDS
from bdia_exp.store import records
from bdia_exp.store.records import Record

FIRST_SEED = 3_000_000_000
"""The first seed of a fit: far from those of tables and of users."""
IMAGES = {averaged: 200, heun: 200}
"""The paper's batches of starting noises: 200 for EDM's sampler, else 16."""
FEWEST = 16
TARGETS = ("global", "local", "variance")
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

    def __post_init__(self) -> None:
        for key in ("images", "held_out", "parts", "fine", "denominator"):
            positive(f"fit.{key}", getattr(self, key), MOST_SEEDS)
        one_of("fit.target", self.target, TARGETS)
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


@dataclass(frozen=True)
class Batch:
    """Starting noises with their network: one call evaluates all of them, a few at a time."""

    z: Tensor
    denoisers: list[Denoiser]
    size: int

    @classmethod
    def of(cls, job: Job, seeds: Sequence[int], size: int) -> "Batch":
        z, labels = job.draw(seeds)
        size = max(size, batching.ROWS)  # smaller batches are padded to this
        rows = [slice(start, start + size) for start in range(0, len(seeds), size)]
        conditions = (
            job.texts(seeds[part]) if job.texts else None if labels is None else labels[part]
            for part in rows
        )
        return cls(z, [job.model.denoiser(condition) for condition in conditions], size)

    def __call__(self, z: Tensor, level: Level) -> Estimate:
        parts = zip(self.denoisers, z.split(self.size), strict=True)
        found = [denoiser(part, level) for denoiser, part in parts]
        clean = [part.clean for part in found if part.clean is not None]
        whole = torch.cat(clean) if len(clean) == len(found) else None
        return Estimate(level, z, torch.cat([part.eps for part in found]), whole)


def fit(job: Job, options: FitOptions, size: int, step: Callable[[], object]) -> Record:
    """Fits `job.sampler` and measures it on other noises; what a file has, but for what it is for.

    `size` images are evaluated at a time. `step` is called after every network evaluation of all
    images. Raises UserError as `samplers.fitted` and `samplers.targets` do.
    """
    key = key_of(job.sampler)
    images = images_of(job.sampler, options)
    held_out = options.held_out or images
    seeds = range(options.first_seed, options.first_seed + images)
    others = range(seeds.stop, seeds.stop + held_out)
    within = (float(options.within[0]), float(options.within[1])) if options.within else None

    with torch.inference_mode():
        run = Side(job, seeds, size, options, step)
        found = Fit(run.target, within, options.denominator, options.target == "variance")
        end = run.end({key: found})
        spent = run.network.nfe
        errors = {"batch": run.errors(end)}
        aside = Side(job, others, size, options, step)
        watch = Watch(found.rows, aside.target)
        errors["held_out"] = aside.errors(aside.end({key: watch}))
    return {
        "coefficients": found.rows,
        "fit": {
            "argument": key,
            "target": options.target,
            "parts": options.parts if options.target == "local" else None,
            "fine": options.fine,
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "held_out_seeds": f"{others[0]}-{others[-1]}",
            "within": options.within,
            "denominator": options.denominator,
            "evaluations_per_noise": spent,
        },
        "residuals": _residuals(found.steps),
        "held_out_residuals": _residuals(watch.steps),
        "conditions": [step.condition for step in found.steps],
        "end_errors": errors,
    }


def images_of(sampler: Sampler, options: FitOptions) -> int:
    """The number of starting noises of a fit."""
    usual = IMAGES.get(getattr(sampler, "func", sampler), FEWEST)
    return options.images or usual


SOLVED: dict[str, Fine] = {}


class Side:
    """The noises of a fit, or those held out: their network, their target and their errors."""

    def __init__(
        self,
        job: Job,
        seeds: Sequence[int],
        size: int,
        options: FitOptions,
        step: Callable[[], object],
    ):
        batch = Batch.of(job, seeds, size)
        self.job, self.z, self.seeds = job, batch.z, seeds

        def evaluated(z: Tensor, level: Level) -> Estimate:
            step()
            return batch(z, level)

        self.network = Counted(evaluated)
        self.base: Sampler = _without(job.sampler, key_of(job.sampler))
        schedule = job.model.schedule
        self.levels = fine_levels(job.grid, schedule, options.fine)
        self.target: Target
        if options.target == "local":
            self.target = Local(self.base, self.network, job.grid, schedule, options.parts)
        else:
            self.target = Global(self.fine.on(job.grid))

    @cached_property
    def fine(self) -> Fine:
        """The fine solution of these noises. The two newest are kept for other samplers."""
        texts = self.job.texts.provenance if self.job.texts else None
        weights = self.job.model.provenance["sha256"]
        about = [weights, self.job.label, texts, list(self.seeds), self.levels, self.z.sum()]
        key = records.digest({"fine": about})
        if key in SOLVED:
            self.network.nfe += len(self.levels) - 1
        else:
            SOLVED[key] = Fine.solved(self.network, self.z, self.levels)
            for old in [*SOLVED][:-2]:
                del SOLVED[old]
        return SOLVED[key]

    def end(self, more: Record) -> Tensor:
        """The end states of the sampler with these coefficients."""
        found: Tensor = last(partial(self.base, **more)(self.network, self.z, self.job.grid))
        return found

    def errors(self, end: Tensor) -> Record:
        """Distances from the fine solution: of the base method's end states, and of the fitted."""
        fine = self.fine.end
        return {"base": _distances(self.end({}) - fine), "fitted": _distances(end - fine)}


def _distances(wrong: Tensor) -> Record:
    each = wrong.double().flatten(1).square().mean(1).sqrt()
    return {"rms": rms(wrong), "median": median(each.tolist()), "max": float(each.max())}


def _residuals(steps: Sequence[Step]) -> Record:
    return {key: [getattr(step, key) for step in steps] for key in ("before", "after")}


def _without(sampler: Sampler, key: str) -> Sampler:
    """The base method of a sampler: without coefficients, or with γ = 0."""
    given = {k: v for k, v in sampler.keywords.items() if k != key}  # type: ignore[attr-defined]
    return partial(sampler.func, **given)  # type: ignore[attr-defined]


def work(steps: int, nfe: int, options: FitOptions) -> int:
    """The evaluations of all images that a fit makes; for its progress."""
    fine = 2 * options.fine
    local = 0 if options.target != "local" else 2 * steps * (2 * options.parts - 1)
    return fine + local + 4 * nfe


def ensure(asked: Solving, device: str, batch: int) -> None:
    """Fits the coefficients that sampler.gamma=auto or sampler.coefficients=auto needs.

    It does nothing if the sampler has none, or if the cache has their file. Rank 0 fits.
    """
    named = file_of(asked.sampler.config)
    if not named or not is_automatic(named[1]):
        return
    path = automatic(asked)
    if dist.rank() == 0 and not path.exists():
        if not isinstance(asked, Drawing) and asked.prompt is not None:
            raise UserError(
                f"sampler.{named[0]}=auto: fit the coefficients for texts with `bdia-exp fit`, and "
                "give the file"
            )
        target = named[1].removeprefix(AUTO).lstrip(":") or "global"
        options = replace(usual(asked.sampler.make), target=target)
        records.save(path, made(asked, device, batch, options))
        say(f"the coefficients are kept in {path}")
    dist.barrier()


def usual(sampler: Sampler) -> FitOptions:
    """The options of a fit that nobody chose. A γ is a short fraction above 0: it can be undone."""
    if key_of(sampler) == "gamma":
        return FitOptions(within=[0.05, 2.0], denominator=FRACTIONS)
    return FitOptions()


def made(asked: Solving, device: str, batch: int, options: FitOptions) -> Record:
    """Loads the model and fits: the content of the file of coefficients."""
    model = asked.load(device)
    grid = levels_of(asked, model)
    texts = Texts.of(model, asked) if isinstance(asked, Drawing) else None
    noise = asked.noise_device if isinstance(asked, Drawing) else "cpu"
    job = Job(model, asked.sampler.make, grid, asked.class_, texts, noise)
    fine_levels(grid, model.schedule, options.fine)  # raises UserError before anything is said
    say(f"fitting the coefficients of {asked.sampler.name} at nfe={asked.nfe}")
    with progress(work(len(grid) - 1, asked.nfe, options), "evaluation") as bar:
        found = fit(job, options, batch, bar.update)
    levels = coefficients.plain_levels(grid)
    return {"for": {**fitted_for(asked), "levels": levels}, **found}
