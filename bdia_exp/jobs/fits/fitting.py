"""Fits the coefficients of a sampler for one model and grid, and writes their file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bdia_exp import dist
from bdia_exp.console import progress, say
from bdia_exp.errors import UserError
from bdia_exp.jobs import coefficients
from bdia_exp.jobs.coefficients import Coefficients, file_of, is_automatic, target_of
from bdia_exp.jobs.fits.noises import Side, weighted
from bdia_exp.jobs.fits.options import FitOptions, bounds_of, key_of, seeds_of, usual
from bdia_exp.jobs.fits.searching import judge_of, judged_by, searched
from bdia_exp.jobs.identity import automatic, fitted_for
from bdia_exp.jobs.sampling import Job, texts_and_grid
from bdia_exp.jobs.settings import Comparing, Drawing, Solving
from bdia_exp.metrics.score import Score
from bdia_exp.samplers.cost import evaluations
from bdia_exp.samplers.fitted import Fit, Probe, Step, Watch
from bdia_exp.samplers.targets import fine_levels
from bdia_exp.samplers.weights import Rows
from bdia_exp.store import records
from bdia_exp.store.files import write_once
from bdia_exp.store.records import Record


def fit(
    job: Job,
    options: FitOptions,
    size: int,
    step: Callable[[], object],
    judge: Score | None = None,
) -> Record:
    """Fits `job.sampler` and measures it on other noises; what a file has, but for what it is for.

    `size` images are evaluated at a time. `step` is called after every network evaluation of all
    images. `judge` is for the target "features". Raises UserError as `samplers.fitted`,
    `samplers.targets` and `searching` do.
    """
    seeds, others = seeds_of(job.sampler, options)

    with torch.inference_mode():
        run = Side(job, seeds, size, options, step)
        found = Fit(run.target, bounds_of(options), options.target == "variance")
        end = run.end(found)
        rows: Rows = found.rows
        steps, spent, search = found.steps, run.network.nfe, Record()
        if judge:
            rows, search["search"] = searched(job, found, judge, options, size, others.stop)
            watch = Watch(rows, run.target)
            end, steps = run.end(watch), watch.steps
        errors = {"batch": run.errors(end)}
        aside = Side(job, others, size, options, step)
        watch = Watch(rows, aside.target)
        errors["held_out"] = aside.errors(aside.end(watch))
    return {
        "coefficients": rows,
        "fit": {
            "argument": key_of(job.sampler),
            "target": options.target,
            "parts": options.parts if options.target == "local" else None,
            "fine": options.fine,
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "held_out_seeds": f"{others[0]}-{others[-1]}",
            "within": options.within,
            "denominator": options.denominator,
            "evaluations_per_noise": spent,
        },
        **search,
        "residuals": _residuals(steps),
        "held_out_residuals": _residuals(watch.steps),
        "conditions": [step.condition for step in found.steps],
        "end_errors": errors,
    }


def _residuals(steps: Sequence[Step]) -> Record:
    return {key: [getattr(step, key) for step in steps] for key in ("before", "after")}


def work(steps: int, nfe: int, options: FitOptions) -> int:
    """The evaluations of all images that a fit makes; for its progress."""
    fine = 2 * options.fine
    local = 0 if options.target != "local" else 2 * steps * (2 * options.parts - 1)
    return fine + local + 4 * nfe


def ensure(asked: Solving, device: str, batch: int) -> None:
    """Fits the coefficients that sampler.gamma=auto or sampler.coefficients=auto needs.

    It does nothing if the sampler has none, or if the cache has their file; a damaged one is made
    again. Rank 0 fits, and the others wait.
    """
    named = file_of(asked.sampler.config)
    if not named or not is_automatic(named[1]):
        return
    key, name = named
    path = automatic(asked)

    def fitted() -> None:
        if _is_whole(path):
            return
        path.unlink(missing_ok=True)
        if not isinstance(asked, Drawing) and asked.has_text:
            raise UserError(
                f"sampler.{key}=auto: fit the coefficients for texts with `bdia-exp fit`, and "
                "give the file"
            )
        options = replace(usual(asked.sampler.make), target=target_of(name))
        # For all classes and the usual noise: other runs read this file, too.
        general = replace(asked, class_=None)
        if isinstance(general, Drawing):
            general = replace(general, noise_device="cpu")
        found = made(general, device, batch, options, may_be_empty=True)
        write_once(path, records.text(found))
        say(f"the coefficients are kept in {path}")

    dist.by_rank_0(fitted)


def _is_whole(path: Path) -> bool:
    """Whether a file of coefficients is there and can be read."""
    try:
        Coefficients.read(str(path))
    except UserError:
        return False
    return True


def made(
    asked: Solving, device: str, batch: int, options: FitOptions, *, may_be_empty: bool = False
) -> Record:
    """Loads the model and fits: the content of the file of coefficients.

    Raises UserError if no step has coefficients, unless the file `may_be_empty`.
    """
    model = asked.load(device)
    texts, grid = texts_and_grid(asked, model)
    noise = asked.noise_device if isinstance(asked, Drawing) else "cpu"
    job = Job(model, asked.sampler.make, grid, asked.class_, texts, noise, asked.guidance)
    # Raise UserError before anything is said.
    fine_levels(grid, model.schedule, options.fine)
    probe = Probe()
    evaluations(weighted(job.sampler, probe), grid)
    if not (probe.most or may_be_empty):
        raise UserError(
            f"nfe={asked.nfe}: no step of this sampler has enough earlier evaluations for "
            "coefficients: give a larger nfe="
        )
    judge = None
    if options.target == "features":
        if not isinstance(asked, Comparing):
            raise UserError(
                "auto:features is for `sample`: here, fit the coefficients with `bdia-exp fit "
                "fit.target=features` and give the file"
            )
        judge = judge_of(asked, options, device, batch)
    seeds_of(job.sampler, options, 2 * judged_by(judge, options) if judge else 0)
    say(f"fitting the coefficients of {asked.sampler.name} at nfe={asked.nfe}")
    with progress(work(len(grid) - 1, asked.nfe, options), "evaluation") as bar:
        found = fit(job, options, batch, bar.update, judge)
    levels = coefficients.plain_levels(grid)
    return {"for": {**fitted_for(asked), "levels": levels}, **found}
