"""A search for the coefficients whose images have the smallest FID: `fit.target=features`.

A fit by least squares brings every state close to the fine solution. Pictures of less contrast are
closer in the mean, so this need not lower the FID. The search changes all coefficients together
and looks at the images only. It is CMA-ES, which needs no derivative (package `cmaes`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bdia_exp.console import progress
from bdia_exp.errors import UserError
from bdia_exp.jobs.fits.noises import Batch, weighted
from bdia_exp.jobs.fits.options import FitOptions
from bdia_exp.jobs.problems import last
from bdia_exp.jobs.sampling import Job
from bdia_exp.jobs.scoring import scorer_of
from bdia_exp.jobs.settings import Comparing
from bdia_exp.metrics.frechet import frechet_distance, require_enough
from bdia_exp.metrics.score import Score
from bdia_exp.samplers.fitted import Bounds, Fit
from bdia_exp.samplers.weights import Given, Rows
from bdia_exp.store.records import Record

TRIALS = 20
"""The usual number of tries for each coefficient."""
FIRST_STEP = 0.3
"""The first standard deviation of a coefficient, as a part of its reach (`fitted.Step`)."""
PER_DIMENSION = 8
"""The usual number of images for each dimension of the features."""
SEED = 0
"""Of the search's own random numbers."""
LARGE = 1e12
"""Stands for the FID of states that are not finite."""


def judge_of(asked: Comparing, options: FitOptions, device: str, batch: int) -> Score:
    """What judges the images: features, and a reference.

    Raises UserError if there is no reference, or for fewer images than the features have
    dimensions.
    """
    judge = scorer_of(asked, device, batch)
    require_enough(options.judged, judge.extractor.dim)
    return judge


def judged_by(judge: Score, options: FitOptions) -> int:
    """The number of images of one try."""
    return options.judged or PER_DIMENSION * judge.extractor.dim


@dataclass(frozen=True)
class Trial:
    """Images of the same noises, made with other coefficients, and their FID."""

    job: Job
    batch: Batch
    judge: Score

    def __call__(self, rows: Rows | None) -> float:
        """The FID with these coefficients, or of the base method; LARGE if the sampler diverges."""
        from bdia_exp.metrics.sums import FeatureMoments

        extractor = self.judge.extractor
        assert self.judge.reference is not None
        moments = FeatureMoments(extractor.dim, sync_on_compute=False).to(extractor.device)
        sampler = weighted(self.job.sampler, Given(rows) if rows is not None else None)
        end = last(sampler(self.batch, self.batch.z, self.job.grid))
        if not end.isfinite().all():
            return LARGE
        for part in end.split(self.batch.size):
            moments.update(self.judge.measure(self.job.model.decode(part)).features)
        return frechet_distance(moments.compute(), self.judge.reference)


def searched(
    job: Job, found: Fit, judge: Score, options: FitOptions, size: int, first: int
) -> tuple[Rows, Record]:
    """The coefficients with the smallest FID, and what the search did.

    It starts from the better of no coefficients and the fit `found`. Its noises have the seeds from
    `first`; as many further ones are held out.
    """
    count = judged_by(judge, options)
    seeds, others = range(first, first + count), range(first + count, first + 2 * count)
    reaches = [step.reach for step in found.steps]
    trial = Trial(job, Batch.of(job, seeds, size), judge)
    tried = search(found.rows, reaches, trial, found.bounds, options.trials)
    best = min(tried)
    aside = Trial(job, Batch.of(job, others, size), judge)
    compared = {"base": (trial(None), None), "least_squares": tried[1], "found": best}
    return best[1], {
        "features": judge.extractor.name,
        "features_sha256": judge.extractor.sha256,
        "resize": judge.resize,
        "seeds": f"{seeds[0]}-{seeds[-1]}",
        "held_out_seeds": f"{others[0]}-{others[-1]}",
        "trials": len(tried),
        "fid": {name: fid for name, (fid, _) in compared.items()},
        "held_out_fid": {name: aside(rows) for name, (_, rows) in compared.items()},
    }


def search(
    fitted: Rows,
    reaches: Rows,
    distance: Callable[[Rows], float],
    bounds: Bounds,
    trials: int | None,
) -> list[tuple[float, Rows]]:
    """The coefficients that were tried, each with its distance.

    The first are those nearest to 0 within `bounds`, then come `fitted` and those of CMA-ES.

    CMA-ES starts at the better of the first two. `reaches` has the size of a change of each
    coefficient. `bounds` are kept by every try. Raises UserError for one coefficient only.
    """
    from cmaes import CMA

    start = np.array([weight for row in fitted for weight in row])
    scale = FIRST_STEP * np.array([reach for row in reaches for reach in row])
    if len(start) < 2:
        raise UserError("fit.target=features needs two coefficients or more: give a larger nfe=")
    most = trials or TRIALS * len(start)
    tried: list[tuple[float, Rows]] = []

    def value(point: np.ndarray) -> float:
        weights = iter(point.tolist())
        rows = [[bounds(next(weights)) for _ in row] for row in fitted]
        tried.append((distance(rows), rows))
        bar.update()
        return tried[-1][0]

    with progress(most, "try") as bar:
        center = min((np.zeros_like(start), start), key=value)
        optimizer = CMA(mean=np.zeros(len(start)), sigma=1.0, seed=SEED)
        while len(tried) + optimizer.population_size <= most:
            points: Sequence = [optimizer.ask() for _ in range(optimizer.population_size)]
            optimizer.tell([(point, value(center + scale * point)) for point in points])
    return tried
