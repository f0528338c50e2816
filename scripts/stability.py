#!/usr/bin/env python3
"""Regions of linear stability of reversible samplers, in the plane of hλ.

    python scripts/stability.py results/stability

The network is ε̂ = −λ z on EDM levels that are one apart, so the exact solution grows by exp(hλ) a
step. The package's own step is applied to the states (1, 0) and (0, 1): this gives its 2×2 matrix.
Stable: no eigenvalue of the matrix is above 1 in absolute value. Writes stability.png and
stability.json: the area, and how far the two axes are stable from 0 on.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdia_exp.samplers.core import Counted, Denoiser, Estimate, Level
from bdia_exp.samplers.coupling import CBDIA, EDICT, Coupling, Pair
from bdia_exp.samplers.loops import coupled, multistep
from bdia_exp.samplers.rex import Rex
from bdia_exp.samplers.schedules import edm
from bdia_exp.store import records
from bdia_exp.store.files import atomic

LEVELS = edm(12.0), edm(11.0), edm(10.0)
"""The past level, the one of the newest state, and the next one."""

Step = Callable[[Denoiser, Pair], Pair]
"""One step of a method: from the two states that it has to the next two."""


def of_coupling(coupling: Coupling) -> Step:
    """A step of two coupled states."""
    return lambda model, pair: next(coupled(model, pair, LEVELS[1:], coupling))


def of_loop(**options) -> Step:
    """A step of `multistep`, from (newest, past) to (next, newest)."""

    def step(model: Denoiser, pair: Pair) -> Pair:
        newest, past = pair
        trail = [Estimate(LEVELS[0], past, torch.zeros_like(past))]
        return next(multistep(model, newest, LEVELS[1:], trail=trail, **options)), newest

    return step


METHODS: dict[str, Step] = {
    "DDIM": of_loop(),
    "BDIA γ = 1": of_loop(gamma=1.0),
    "BDIA γ = 0.96": of_loop(gamma=0.96),
    "BDIA γ = 0.5": of_loop(gamma=0.5),
    "BDIA γ = 0.25": of_loop(gamma=0.25),
    "O-BELM (leapfrog)": of_loop(gamma="obelm"),
    "EDICT p = 0.93": of_coupling(EDICT(0.93)),
    "CBDIA 0, 1": of_coupling(CBDIA(0.0, 1.0)),
    "CBDIA 0.04, 0.96": of_coupling(CBDIA(0.04, 0.96)),
    **{
        f"Rex {tableau}, ζ = {zeta:g}": of_coupling(Rex(tableau, "noise", zeta))
        for zeta in (1.0, 0.999)
        for tableau in ("euler", "midpoint", "rk4")
    },
}


def radius(step: Step, at: Tensor) -> Tensor:
    """The spectral radius of one step's matrix at every hλ of `at`, complex [P] → real [P]."""

    def network(z: Tensor, level: Level) -> Estimate:
        return Estimate(level, z, -at * z)

    one, zero = torch.ones_like(at), torch.zeros_like(at)
    columns = [torch.stack(step(network, pair)) for pair in ((one, zero), (zero, one))]
    return torch.linalg.eigvals(torch.stack(columns).permute(2, 1, 0)).abs().amax(1)


ROUNDING = 1e-9
"""By how much an absolute value may be above 1: eigenvalues are not found exactly."""


def stable(step: Step, at: Tensor) -> Tensor:
    """Whether each hλ of `at`, complex of any shape, is stable."""
    return (radius(step, at.flatten()) <= 1 + ROUNDING).reshape(at.shape)


def reach(step: Step, direction: complex) -> float:
    """How far from 0 a ray is stable without a gap, up to 6; 0 if less than 1e-6."""
    distances = torch.logspace(-6, math.log10(6), 20_000, dtype=torch.float64)
    ends = (~stable(step, distances * direction)).nonzero()
    first = int(ends[0]) if len(ends) else len(distances)
    return float(distances[first - 1]) if first else 0.0


SMALL = torch.logspace(-5, math.log10(0.02), 60, dtype=torch.float64)
REAL = torch.cat(
    [
        torch.linspace(-3.2, -0.02, 319, dtype=torch.float64)[:-1],
        -SMALL.flip(0),
        torch.zeros(1, dtype=torch.float64),
        SMALL,
        torch.linspace(0.02, 1, 99, dtype=torch.float64)[1:],
    ]
)
"""Edges of cells from −3.2 to 1, finer near 0: some regions are 0.001 wide."""
IMAGINARY = torch.linspace(-3, 3, 301, dtype=torch.float64)


def region(step: Step) -> Tensor:
    """Whether the middle of every cell is stable, [imaginary, real]."""
    middles = [(edges[1:] + edges[:-1]) / 2 for edges in (IMAGINARY, REAL)]
    imaginary, real = torch.meshgrid(*middles, indexing="ij")
    return stable(step, torch.complex(real, imaginary))


def evaluations(step: Step) -> int:
    """The network evaluations of a step."""
    network = Counted(lambda z, level: Estimate(level, z, torch.zeros_like(z)))
    step(network, (torch.zeros(1), torch.zeros(1)))
    return network.nfe


def measured(step: Step) -> dict[str, float]:
    """The area of the region, where it ends on the two axes, and what a step costs."""
    area = IMAGINARY.diff()[:, None] * REAL.diff() * region(step)
    return {
        "area": round(float(area.sum()), 4),
        "leftmost_real": -round(reach(step, -1), 4) + 0.0,
        "imaginary": round(reach(step, 1j), 3),
        "evaluations": evaluations(step),
    }


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """A panel for each method: its region, and its stable parts of the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(3, 5, sharex=True, sharey=True).flat
    for panel, (name, step) in zip(panels, METHODS.items(), strict=False):
        numbers = found[name]
        panel.pcolormesh(REAL, IMAGINARY, region(step), cmap="Blues", vmin=0, vmax=2)
        panel.axhline(0, color="0.7", lw=0.5)
        panel.axvline(0, color="0.7", lw=0.5)
        panel.plot([numbers["leftmost_real"], 0], [0, 0], color="C3", lw=3)
        panel.plot([0, 0], [-numbers["imaginary"], numbers["imaginary"]], color="C3", lw=3)
        panel.set_title(
            f"{name}\narea {numbers['area']:g}; {numbers['evaluations']} a step", fontsize=9
        )
        panel.set(aspect="equal", xlim=(-3.2, 1), ylim=(-3, 3))
    for panel in list(panels)[len(METHODS) :]:
        panel.axis("off")
    figure.supxlabel("Re hλ, h is the length of a step; red: stable from 0 on, along the axes")
    figure.supylabel("Im hλ")
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder to write to")
    out: Path = parser.parse_args().out
    found = {name: measured(step) for name, step in METHODS.items()}
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "stability.png")
    records.save(out / "stability.json", {"methods": found, **records.provenance()})
    for name, numbers in found.items():
        print(name, *(f"{key} {value:g}" for key, value in numbers.items()), sep="  ")


if __name__ == "__main__":
    main()
