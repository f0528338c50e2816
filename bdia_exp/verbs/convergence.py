"""`convergence`: the error of samplers for several numbers of steps, and its order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import linear_regression
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bdia_exp import dist
from bdia_exp.console import positive, progress
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked, Compose, folder_of
from bdia_exp.jobs.identity import plainly, sampler_identity
from bdia_exp.jobs.problems import Problem, last, problems_of
from bdia_exp.models.toy import Gaussian
from bdia_exp.overrides import entries, whole_numbers
from bdia_exp.report import figures
from bdia_exp.report.markdown import finite, markdown_table, publish, short
from bdia_exp.samplers.core import Counted, Grid, Sampler
from bdia_exp.samplers.cost import MOST
from bdia_exp.samplers.fitted import rms
from bdia_exp.samplers.grids import arc, karras
from bdia_exp.samplers.schedules import edm
from bdia_exp.samplers.starts import runge_kutta
from bdia_exp.store.cache import Cells
from bdia_exp.store.records import NUMBER_OR_NULL, Record, Types
from bdia_exp.verbs import Verb

FINER = 2
"""The reference solution takes this many times the largest number of steps in the study."""
POINTS = 3
"""The order is the slope through this many points, those with the most steps."""
ABOVE = 10.0
"""Only errors above this multiple of the noise floor count for the order."""
MEASURED: Types = {"error": NUMBER_OR_NULL, "nfe": (int,)}
"""What is measured of a sampler, for one number of steps."""


@dataclass(frozen=True, kw_only=True)
class ConvergenceStudy(Asked):
    """Problems, samplers and numbers of steps."""

    problems: list | str
    samplers: list | dict | str
    steps: list | str | float
    count: int
    sigma_min: float
    sigma_max: float
    device: str
    out: str | None

    def check(self) -> None:
        super().check()
        positive("count", self.count, MOST)
        karras(1, None, **self.span)  # raises UserError for a wrong range

    @property
    def span(self) -> dict[str, float]:
        """The last and the first level of all samplers, as σ/α."""
        return {"sigma_min": float(self.sigma_min), "sigma_max": float(self.sigma_max)}


def convergence(asked: ConvergenceStudy, compose: Compose) -> Record:
    """Runs every sampler on every problem with every number of steps; returns what it wrote.

    All samplers solve the same ODE from sigma_max to sigma_min. Raises UserError for unknown
    names before anything runs.
    """
    wanted = sorted(whole_numbers("steps", asked.steps, MOST))
    device = dist.device(asked.device)
    named = entries("samplers", asked.samplers, "sampler")
    chosen = [_sampler(label, how, compose) for label, how in named.items()]
    solved = problems_of(asked.problems, asked.count, device, compose)
    for problem in solved:
        least, most = problem.schedule.supported
        if asked.sigma_min < least:
            raise UserError(
                f"sigma_min={asked.sigma_min:g} is below the {least:g} of {problem.name}"
            )
        if asked.sigma_max > (most := min(most, problem.schedule.rho_max)):
            raise UserError(
                f"sigma_max={asked.sigma_max:g} is beyond the schedule of {problem.name}: give "
                f"{most:.4g} or less"
            )
    root = folder_of(asked.out, "convergence")
    cells, span = Cells(root, plainly, "convergence"), asked.span
    drawn: list[Record] = []
    with progress(len(solved) * len(chosen) * len(wanted), "run") as bar:
        for problem in solved:
            exact = reference(problem, span, FINER * wanted[-1], cells)
            drawn.append(
                {
                    "name": problem.name,
                    "about": problem.about,
                    "identity": problem.identity,
                    "reference": exact.identity,
                    "floor": exact.floor,
                    "rows": [_row(problem, s, wanted, span, exact, cells, bar) for s in chosen],
                }
            )
    study: Record = {
        "command": "convergence",
        **cells.made,
        "device": cells.device,
        "config": {"steps": wanted, "count": asked.count, **span},
        "problems": drawn,
    }
    publish(root, "convergence", study, _markdown(study), figures.convergence)
    return study


class _Chosen(NamedTuple):
    label: str
    sampler: Sampler
    config: Record
    levels: str  # "edm" or "arc"


def _sampler(label: str, overrides: list[str], compose: Compose) -> _Chosen:
    """A sampler and the kind of its levels: EDM's if its default grid is EDM's, else the arc."""
    asked = compose(overrides)
    config = asked.sampler.config
    if config.get("S_churn") or config.get("sde"):
        raise UserError(f"samplers: {label!r} draws noise, so it has no order: leave it out")
    levels = "edm" if asked.grid.name == "karras" else "arc"
    return _Chosen(label, asked.sampler.make, config, levels)


def _row(
    problem: Problem,
    chosen: _Chosen,
    steps: list[int],
    span: Record,
    exact: "Reference",
    cells: Cells,
    bar: tqdm,
) -> Record:
    """A sampler's errors and evaluations, for every number of steps, and its order."""
    made = []
    for n in steps:
        if chosen.levels == "edm":
            grid = karras(n + 1, **span)[:-1]  # without its clean level
        else:
            grid = arc(n, problem.schedule, **span)
        identity = {
            **problem.identity,
            **span,
            "sampler": sampler_identity(chosen.config),
            "levels": chosen.levels,
            "steps": n,
            "reference": exact.identity,
        }
        run = partial(_run, problem, chosen.sampler, grid, exact)
        name = f"{problem.name}-{chosen.label}-{n}"
        made.append(cells.get(name, identity, MEASURED, run, problem.device))
        bar.update()
    errors = [cell["error"] for cell in made]
    return {
        "sampler": chosen.label,
        "config": chosen.config,
        "levels": chosen.levels,
        "nfe": [cell["nfe"] for cell in made],
        "errors": errors,
        "order": order(steps, errors, exact.floor),
    }


def _run(problem: Problem, sampler: Sampler, grid: Grid, exact: "Reference") -> Record:
    """The error at the end, in EDM's coordinates z/α, in which all samplers have one start."""
    denoiser = Counted(problem.denoiser)
    z = last(sampler(denoiser, grid[0].alpha * exact.start, grid))
    return {"error": finite(rms(z / grid[-1].alpha - exact.end)), "nfe": denoiser.nfe}


# -- the exact solution --------------------------------------------------------------------------


class Reference(NamedTuple):
    """States at sigma_max, and the solution from them at sigma_min, both with α = 1.

    `floor` estimates the RMS error of the solution.
    """

    start: Tensor
    end: Tensor
    floor: float
    identity: Record


def reference(problem: Problem, span: Record, steps: int, cells: Cells) -> Reference:
    """The closed form for one Gaussian; else the classical Runge-Kutta method on EDM's levels.

    The floor of the latter is its RMS difference from the solution with half the steps.
    """
    s, t = edm(span["sigma_max"]), edm(span["sigma_min"])
    start = problem.noise(s)
    if isinstance(problem.density, Gaussian):
        floor = torch.finfo(start.dtype).eps * rms(start)
        return Reference(start, problem.density.flow(start, s, t), floor, {"solver": "exact"})
    fine, coarse = (_runge_kutta(problem, start, span, n, cells) for n in (steps, steps // 2))
    return Reference(start, fine, rms(fine - coarse), {"solver": "rk4", "steps": steps})


def _runge_kutta(problem: Problem, z: Tensor, span: Record, steps: int, cells: Cells) -> Tensor:
    """The end of the solution that starts at z: read from the disk or computed."""

    def solve() -> Record:
        state, grid = z, karras(steps + 1, **span)[:-1]
        with torch.inference_mode(), progress(steps, "step") as bar:
            for s, t in pairwise(grid):
                state = runge_kutta(problem.denoiser, problem.denoiser(state, s), t)
                bar.update()
        return {"state": state.tolist()}

    identity = {**problem.identity, **span, "solver": "rk4", "steps": steps}
    name = f"{problem.name}-rk4-{steps}"
    cell = cells.get(name, identity, {"state": (list,)}, solve, problem.device)
    return torch.tensor(cell["state"], dtype=z.dtype, device=z.device)


def order(steps: Sequence[int], errors: Sequence[float | None], floor: float) -> float | None:
    """Minus the slope of log error over log steps, through the finest points above the floor.

    None if fewer than two are left, or if the error does not fall from each one to the next.
    """
    points = [
        (math.log(n), math.log(error))
        for n, error in zip(steps, errors, strict=True)
        if error is not None and error > ABOVE * floor
    ][-POINTS:]
    falls = all(later < earlier for (_, earlier), (_, later) in pairwise(points))
    if len(points) < 2 or not falls:
        return None
    return -linear_regression(*zip(*points, strict=True)).slope


def _markdown(study: Record) -> str:
    config = study["config"]
    parts = [
        "# Convergence",
        f"RMS error of an element of the end state, of {config['count']} states from "
        f"σ/α = {config['sigma_max']:g} to {config['sigma_min']:g}, compared as z/α. Levels: "
        "evenly spaced on the arc (cos θ, sin θ), or EDM's for the samplers marked ᴱ. The order is "
        f"the slope of log error over log N through the {POINTS} finest points that are more than "
        f"{ABOVE:g} times the noise floor; – where there are fewer than two, or the error does "
        "not fall (it may change its sign). It is what was measured between these N, not the "
        "limit.",
        "![Convergence](convergence.png)",
    ]
    for problem in study["problems"]:
        solution = problem["reference"]
        how = (
            f"error against the exact solution; rounding of the start: {problem['floor']:.0e}"
            if solution["solver"] == "exact"
            else f"error against RK4 with {solution['steps']} steps; with half of them it differs "
            f"by {problem['floor']:.0e}, the noise floor (a float32 network leaves about 1e-06)"
        )
        heads = ["sampler", *(f"N = {n}" for n in config["steps"]), "order"]
        heads.append(f"NFE at N = {config['steps'][-1]}")
        rows = [
            [
                row["sampler"] + (" ᴱ" if row["levels"] == "edm" else ""),
                *map(short, row["errors"]),
                "–" if row["order"] is None else f"{row['order']:.2f}",
                str(row["nfe"][-1]),
            ]
            for row in problem["rows"]
        ]
        about = f"{problem['about'][0].upper()}{problem['about'][1:]}; {how}."
        parts += [f"## {problem['name']}", about, markdown_table(heads, rows)]
    return "\n\n".join(parts) + "\n"


VERB = Verb(convergence, ConvergenceStudy, composes="sample")
