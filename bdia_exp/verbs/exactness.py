"""`exactness`: the errors of inversion after a round trip."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from bdia_exp import dist
from bdia_exp.console import one_of, positive, progress
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked, Compose, folder_of
from bdia_exp.jobs.identity import plainly, sampler_identity
from bdia_exp.jobs.problems import Problem, last, problems_of
from bdia_exp.overrides import entries, exactly, listed, numbers, whole_numbers
from bdia_exp.report import figures
from bdia_exp.report.markdown import finite, markdown_table, publish, short
from bdia_exp.samplers import fixedpoint, inversion
from bdia_exp.samplers.core import Denoiser, Grid
from bdia_exp.samplers.cost import MOST
from bdia_exp.samplers.fitted import rms
from bdia_exp.samplers.inversion import BDIAInversion, DDIMInversion, FixedPointInversion, Inversion
from bdia_exp.samplers.weights import OBELM
from bdia_exp.store.cache import Cells
from bdia_exp.store.records import NUMBER_OR_NULL, Record
from bdia_exp.verbs import Verb

TIMES = ("target", "own")
"""For DDIM's inversion: which level is given to the network."""

WAYS = {"image": "image → noise → image", "noise": "noise → image → noise"}
"""Where a round trip begins and ends."""

MEASURED = dict.fromkeys(("rms", "max", "scale", "latent", "bits", "outside"), NUMBER_OR_NULL)
"""What is measured of a round trip."""


@dataclass(frozen=True)
class Method:
    """An inversion, its number format and configuration, and the function of its grid."""

    label: str
    way: Inversion
    state: str
    config: Record
    grid: Callable[..., Grid]


@dataclass(frozen=True, kw_only=True)
class ExactnessStudy(Asked):
    """Problems, methods, numbers of steps, and how states are held."""

    problems: list | str
    gammas: list | str | float
    samplers: list | str
    steps: list | str | float
    states: list | str
    count: int
    device: str
    out: str | None

    def check(self) -> None:
        super().check()
        positive("count", self.count, MOST)


def exactness(asked: ExactnessStudy, compose: Compose) -> Record:
    """Runs every round trip and returns what it wrote.

    Raises UserError for unknown names, or samplers without an inverse, before anything runs.
    """
    wanted = sorted(whole_numbers("steps", asked.steps, MOST))
    device = dist.device(asked.device)
    states = [*dict.fromkeys(map(str, listed(asked.states)))]
    if not states:
        raise UserError(f"give states=: any of {', '.join(inversion.STATES)}")
    for state in states:
        one_of("states", state, inversion.STATES)
    methods = _methods(numbers("gammas", asked.gammas), asked.samplers, states, compose)
    begun = problems_of(asked.problems, asked.count, device, compose)
    root = folder_of(asked.out, "exactness")
    cells = Cells(root, plainly, "exactness")
    drawn = []
    with progress(len(begun) * len(methods) * len(wanted) * len(WAYS), "trip") as bar:
        for problem in begun:
            rows = [
                _row(problem, method, start, wanted, cells, bar)
                for start in WAYS
                for method in methods
            ]
            about = {key: getattr(problem, key) for key in ("name", "about", "identity")}
            drawn.append({**about, "rows": rows})
    study: Record = {
        "command": "exactness",
        **cells.made,
        "device": cells.device,
        "config": {"steps": wanted, "count": asked.count, "states": [*states]},
        "problems": drawn,
    }
    publish(root, "exactness", study, _markdown(study), figures.round_trips)
    return study


def _methods(
    gammas: list[float], samplers: list | str, states: list[str], compose: Compose
) -> list[Method]:
    """BDIA-DDIM with every γ, then the other samplers, each with the number formats it allows."""
    for gamma in gammas:
        if not 0 < gamma <= 1:
            raise UserError(f"gammas={gamma:g} must be above 0 and at most 1 to be inverted")
    rows = {
        f"bdia_ddim γ={exactly(g)}": ["sampler=bdia_ddim", f"sampler.gamma={g}"] for g in gammas
    }
    rows |= entries("samplers", samplers, "sampler", within=("grid",)) if samplers else {}
    found = []
    for label, overrides in rows.items():
        asked = compose(overrides)
        config = {"sampler": asked.sampler.config, "grid": asked.grid.config}
        of = partial(inversion.of, asked.sampler.make)
        plain = of()
        has_fixed = isinstance(plain, BDIAInversion) and plain.gamma not in (0, OBELM)
        for state in states:
            if state == "fixed" and not has_fixed:
                continue
            if isinstance(plain, DDIMInversion):
                ways = {f"{label}, time {time}": of(state=state, time=time) for time in TIMES}
            else:
                ways = {label: of(state=state)}
            for name, way in ways.items():
                time = {"time": way.time} if isinstance(way, DDIMInversion) else {}
                found.append(Method(name, way, state, config | time, asked.grid.make))
    return found


def _row(
    problem: Problem, method: Method, start: str, steps: list[int], cells: Cells, bar: tqdm
) -> Record:
    """The errors of a method's round trips, for every number of steps."""
    made = []
    for n in steps:
        identity = {
            **problem.identity,
            **method.config,
            "sampler": sampler_identity(method.config["sampler"]),
            "state": method.state,
            "start": start,
            "steps": n,
        }
        name = f"{problem.name}-{start}-{method.label}-{method.state}-{n}"
        run = partial(_trip, problem, method, start, n)
        made.append(cells.get(name, identity, MEASURED, run, problem.device))
        bar.update()
    eps = 0.0 if method.state == "fixed" else torch.finfo(inversion.STATES[method.state]).eps
    exact = not isinstance(method.way, DDIMInversion)
    return {
        "start": start,
        "method": method.label,
        "state": method.state,
        "config": method.config,
        "predicted": [
            method.way.growth(method.grid(n, problem.schedule)) * eps if exact else None
            for n in steps
        ],
        **{key: [cell[key] for cell in made] for key in MEASURED},
    }


def _trip(problem: Problem, method: Method, start: str, steps: int) -> Record:
    """One round trip. Errors are over all elements, relative to the RMS of the first state."""
    grid = method.grid(steps, problem.schedule)
    x = problem.images if start == "image" else problem.noise(grid[0])
    x = x.to(inversion.STATES[method.state])
    trip = from_image if start == "image" else from_noise
    first, kept, back = trip(method.way, problem.denoiser, x, grid)
    error, scale = (back - first).double(), rms(first)
    bits = outside = None
    if method.state == "fixed":
        log = fixedpoint.Log.from_tensors(kept)
        bits, outside = sum(log.bits()) / steps, log.wrapped + log.clipped
    return {
        "rms": finite(rms(error) / scale),
        "max": finite(float(error.abs().max()) / scale),
        "scale": scale,
        "latent": finite(rms(kept["z"])),
        "bits": bits,
        "outside": outside,
    }


Trip = tuple[Tensor, inversion.Kept, Tensor]
"""The first state, what was kept at the turning point, and the last state."""


def from_image(way: Inversion, model: Denoiser, x: Tensor, grid: Grid) -> Trip:
    """Inverts to noise and decodes; `grid` runs from noise to data."""
    if isinstance(way, FixedPointInversion):
        x = fixedpoint.value(fixedpoint.quantise(x))
    kept = last(way.encode(model, x, grid))
    return x, kept, last(way.decode(model, kept, grid))["z"]


def from_noise(way: Inversion, model: Denoiser, z: Tensor, grid: Grid) -> Trip:
    """Samples to a clean state, and inverts from everything that the last step kept."""
    if isinstance(way, FixedPointInversion):
        z = fixedpoint.value(fixedpoint.quantise(z))
    kept = last(way.decode(model, {"z": z, "y": z}, grid, same=False))
    if isinstance(way, FixedPointInversion):
        pair = kept["past.fixed"], kept["z.fixed"]
        log = fixedpoint.Log.from_tensors(kept)
        back, _ = last(fixedpoint.undo(model, pair, grid, log))
        return z, kept, fixedpoint.value(back)
    return z, kept, last(way.encode(model, kept, grid))["z"]


def _markdown(study: Record) -> str:
    steps = study["config"]["steps"]
    most = steps[-1]
    parts = [
        "# Exactness of inversion",
        f"RMS error over all elements of {study['config']['count']} states after a round trip of "
        "N steps each way, relative to the RMS of the first state. Predicted: the machine epsilon "
        "of the state, times the factor by which undoing the steps enlarges an error (for BDIA 1/γ "
        "at each step but the first; DDIM's inversion is not exact, so nothing is predicted). This "
        "is a scale, not a bound: the network changes errors, too, and rounds to float32. Latent: "
        "RMS of the state at the turning point. Side: bits of side information per element and "
        "step, in fixed point; outside: numbers outside its range, which need more side "
        "information but stay exact. An error of 0 means that every bit is equal.",
        "![Error of round trips](exactness.png)",
    ]
    heads = ["method", "state", *(f"N = {n}" for n in steps)]
    heads += [f"{what}, N = {most}" for what in ("max", "predicted", "latent", "side", "outside")]
    for problem in study["problems"]:
        parts += [f"## {problem['name']}", f"{problem['about']}."]
        for start, title in WAYS.items():
            rows = [
                [
                    row["method"],
                    row["state"],
                    *map(short, row["rms"]),
                    *(short(row[key][-1]) for key in ("max", "predicted", "latent")),
                    "–" if row["bits"][-1] is None else f"{row['bits'][-1]:.2f}",
                    "–" if row["outside"][-1] is None else str(row["outside"][-1]),
                ]
                for row in problem["rows"]
                if row["start"] == start
            ]
            parts += [f"### {title}", markdown_table(heads, rows)]
    return "\n\n".join(parts) + "\n"


VERB = Verb(exactness, ExactnessStudy, composes="sample")
