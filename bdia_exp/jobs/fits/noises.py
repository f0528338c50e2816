"""The noises of a fit, and those held out: their network, their target and their errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bdia_exp import batching
from bdia_exp.jobs.fits.options import FitOptions, key_of
from bdia_exp.jobs.problems import last
from bdia_exp.jobs.sampling import Job
from bdia_exp.models import Model
from bdia_exp.samplers.core import Counted, Denoiser, Estimate, Grid, Level, Sampler
from bdia_exp.samplers.fitted import Target, rms
from bdia_exp.samplers.targets import Fine, Global, Local, fine_end, fine_levels
from bdia_exp.samplers.weights import Weights
from bdia_exp.store import records
from bdia_exp.store.records import Record


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
            job.condition(seeds[part], None if labels is None else labels[part]) for part in rows
        )
        return cls(z, [job.model.denoiser(condition) for condition in conditions], size)

    def __call__(self, z: Tensor, level: Level) -> Estimate:
        parts = zip(self.denoisers, z.split(self.size), strict=True)
        found = [denoiser(part, level) for denoiser, part in parts]
        clean = [part.clean for part in found if part.clean is not None]
        whole = torch.cat(clean) if len(clean) == len(found) else None
        return Estimate(level, z, torch.cat([part.eps for part in found]), whole)


SOLVED: WeakKeyDictionary[Model, dict[str, Any]] = WeakKeyDictionary()
"""Fine solutions of a model's noises, or their ends, by what they depend on besides the model."""
Solved = TypeVar("Solved")


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
        self.base: Sampler = weighted(job.sampler, None)
        schedule = job.model.schedule
        self.levels = fine_levels(job.grid, schedule, options.fine)
        self.target: Target
        if options.target == "local":
            self.target = Local(self.base, self.network, job.grid, schedule, options.parts)
        else:
            fine = self._solved(Fine.solved)
            self.target, self.fine_end = Global(fine.on(job.grid)), fine.end

    @cached_property
    def fine_end(self) -> Tensor:
        """The end of the fine solution of these noises, [B, …]."""
        return self._solved(fine_end)

    def _solved(self, solve: Callable[[Denoiser, Tensor, Grid], Solved]) -> Solved:
        """What `solve` finds for these noises. The two newest are kept for other samplers."""
        job = self.job
        condition = [job.label, job.texts and job.texts.provenance, job.guidance]
        about = [condition, list(self.seeds), self.levels, self.z.sum()]
        key = records.digest({solve.__qualname__: about})
        solved = SOLVED.setdefault(job.model, {})
        if key in solved:
            self.network.nfe += len(self.levels) - 1
        else:
            solved[key] = solve(self.network, self.z, self.levels)
            for old in [*solved][:-2]:
                del solved[old]
        return solved[key]

    def end(self, weights: Weights | None) -> Tensor:
        """The end states of the sampler with these coefficients; of its base method for None."""
        sampler = weighted(self.job.sampler, weights)
        found: Tensor = last(sampler(self.network, self.z, self.job.grid))
        return found

    def errors(self, end: Tensor) -> Record:
        """Distances from the fine solution: of the base method's end states, and of the fitted."""
        fine = self.fine_end
        return {"base": _distances(self.end(None) - fine), "fitted": _distances(end - fine)}


def _distances(wrong: Tensor) -> Record:
    each = wrong.double().flatten(1).square().mean(1).sqrt()
    return {"rms": rms(wrong), "median": median(each.tolist()), "max": float(each.max())}


def weighted(sampler: Sampler, weights: Weights | None) -> Sampler:
    """The sampler with these weights in place of its coefficients; its base method for None."""
    key = key_of(sampler)
    given = {k: v for k, v in sampler.keywords.items() if k != key}  # type: ignore[attr-defined]
    more = {} if weights is None else {key: weights}
    return partial(sampler.func, **given, **more)  # type: ignore[attr-defined]
