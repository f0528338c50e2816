"""The list of samplers over which every law is run, and the grids and densities to run it on.

Adding a sampler is one function, one YAML and one line in SAMPLERS.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from bdia_exp.core import CLEAN, Denoiser, Grid, Level, Sampler
from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.schedules import edm
from bdia_exp.solvers import heun, multistep


def one_a_step(steps: int) -> int:
    return steps


def two_a_step(steps: int) -> int:
    return 2 * steps


def two_but_the_last(steps: int) -> int:
    return 2 * steps - 1


class Entry(NamedTuple):
    """A sampler and what it declares."""

    name: str
    sampler: Sampler
    order: int
    nfe_to_clean: Callable[[int], int]  # of the steps, on a grid that ends at σ = 0
    nfe_to_noisy: Callable[[int], int]  # of the steps, on one that does not
    base: Sampler | None = None  # what it is at γ = 0
    gamma: float = 0.0
    exact: bool = False  # invertible from its last two states

    def __str__(self) -> str:
        return self.name


def _single(name: str, order: int, gamma: float = 0.0) -> Entry:
    sampler = partial(multistep, gamma=gamma) if gamma else multistep
    base = multistep if gamma else None
    return Entry(name, sampler, order, one_a_step, one_a_step, base, gamma, bool(gamma))


def _heun(name: str, gamma: float = 0.0, **options) -> Entry:
    sampler = partial(heun, gamma=gamma, **options) if gamma else heun
    base = heun if gamma else None
    return Entry(name, sampler, 2, two_but_the_last, two_a_step, base, gamma)


SAMPLERS = [
    _single("ddim", order=1),
    _single("euler", order=1),  # what DDIM is on EDM's levels
    _single("bdia_ddim_1", order=2, gamma=1.0),
    _single("bdia_ddim_half", order=1, gamma=0.5),
    _heun("edm"),
    _heun("bdia_edm_1", gamma=1.0),
    _heun("bdia_edm_half", gamma=0.5),
    _heun("bdia_edm_1_hat", gamma=1.0, refine="hat"),
    _heun("bdia_edm_half_hat", gamma=0.5, refine="hat"),
]


def vp_arc(steps: int, *, clean: bool = False) -> Grid:
    """VP levels (cos θ, sin θ), θ evenly spaced from 1.45 to 0.05, or to 0."""
    end = 0.0 if clean else 0.05
    angles = [1.45 + i / steps * (end - 1.45) for i in range(steps + 1)]
    return tuple(Level(math.cos(a), math.sin(a), a) for a in angles)


def ve_power(steps: int, *, clean: bool = False) -> Grid:
    """EDM levels (1, σ), σ evenly spaced in σ^(1/7) from 20 to 0.05; with `clean`, 0 follows."""
    hi, lo = 20 ** (1 / 7), 0.05 ** (1 / 7)
    last = steps - clean
    sigmas = [(hi + i / last * (lo - hi)) ** 7 for i in range(last + 1)]
    return (*map(edm, sigmas), *([CLEAN] if clean else []))


GRIDS = [vp_arc, ve_power]

MIXTURE = GaussianMixture(  # on states [B, 1, 2, 3]
    torch.linspace(-1.5, 1.5, 18).sin().reshape(3, 1, 2, 3) * 2, [0.3, 0.5, 0.8], [0.5, 0.3, 0.2]
)
GAUSSIAN = Gaussian(torch.linspace(-1, 1, 6).reshape(1, 2, 3), 0.7)


def states(data: GaussianMixture, level: Level, count: int = 8, seed: int = 0) -> torch.Tensor:
    """Draws of the data at a level, always the same."""
    return data.sample(count, level, generator=torch.Generator().manual_seed(seed))


def end(sampler: Sampler, model: Denoiser, z: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The last state of a run."""
    *_, last = sampler(model, z, grid)
    return last
