"""The list of samplers over which every law is run, and the grids and densities to run it on.

Adding a sampler is one function, one YAML and one line in SAMPLERS.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.samplers import columns
from bdia_exp.samplers.baselines import em, rk45, sscs
from bdia_exp.samplers.core import CLEAN, Denoiser, Grid, Level, Rule, Sampler
from bdia_exp.samplers.gddim import predict_correct, predictor, stochastic
from bdia_exp.samplers.iia_edm import averaged, slopes
from bdia_exp.samplers.loops import bdia, cbdia, edict, heun, multistep, pndm, rex
from bdia_exp.samplers.rules import ddim, deis, dpmpp, leapfrog, plms
from bdia_exp.samplers.schedules import edm
from bdia_exp.samplers.starts import STARTS


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
    low_start: bool = False  # of a higher order but for its first steps, which decide in the limit

    def __str__(self) -> str:
        return self.name


def _single(
    name: str, order: int, gamma: float = 0.0, *, low_start: bool = False, **options
) -> Entry:
    base = partial(multistep, **options) if options else multistep
    return Entry(
        name,
        partial(base, gamma=gamma) if gamma else base,
        order,
        one_a_step,
        one_a_step,
        base if gamma else None,
        gamma,
        exact=bool(gamma) and not options,
        low_start=low_start,
    )


def _pndm(name: str, start: str, order: int, extra: int, gamma: float = 0.0, **options) -> Entry:
    def nfe(steps: int) -> int:
        each = extra // STARTS[start][1]
        return steps + each * min(steps, STARTS[start][1])

    base = partial(pndm, start=start, order=order, **options)
    sampler = partial(base, gamma=gamma) if gamma else base
    return Entry(name, sampler, 1 if gamma else 2, nfe, nfe, base if gamma else None, gamma)


def _heun(name: str, gamma: float = 0.0, **options) -> Entry:
    sampler = partial(heun, gamma=gamma, **options) if gamma else heun
    base = heun if gamma else None
    return Entry(name, sampler, 2, two_but_the_last, two_a_step, base, gamma)


def _two(name: str, order: int, sampler: Sampler) -> Entry:
    return Entry(name, sampler, order, two_a_step, two_a_step)


def _rex(tableau: str, order: int, stages: int, **options) -> Entry:
    def to_clean(steps: int) -> int:
        return 2 * stages * (steps - 1) + 2  # the last step is Euler's

    def to_noisy(steps: int) -> int:
        return 2 * stages * steps

    name = "_".join(["rex", tableau, *map(str, options.values())])
    return Entry(name, partial(rex, tableau=tableau, **options), order, to_clean, to_noisy)


def _deis(order: int, clock: str) -> Rule:
    return partial(deis, order=order, clock=clock)


SAMPLERS = [
    _single("ddim", order=1),
    _single("euler", order=1),  # what DDIM is on EDM's levels
    _single("bdia_ddim_1", order=2, gamma=1.0),
    _single("bdia_ddim_half", order=1, gamma=0.5),
    _single("bdia_ddim_half_hat", order=2, gamma=0.5, refine="hat"),
    _single("leapfrog", order=2, rule=leapfrog),
    _single("dpmpp_2m", order=2, rule=dpmpp, final=ddim),
    _single("dpmpp_2m_to_the_end", order=2, rule=dpmpp),
    _single("bdia_dpmpp_2m_1", order=1, rule=dpmpp, gamma=1.0),
    _single("bdia_dpmpp_2m_half", order=1, rule=dpmpp, final=ddim, gamma=0.5),
    _single("ipndm", order=2, rule=plms, low_start=True),
    _single("bdia_ipndm_half", order=1, rule=plms, gamma=0.5),
    _single("deis_tab_2", order=2, rule=_deis(2, "vp_time")),
    _single("deis_tab_3", order=2, rule=_deis(3, "vp_time"), low_start=True),
    _single("deis_tab_4", order=2, rule=_deis(4, "vp_time"), low_start=True),
    _single("deis_rhoab_2", order=2, rule=_deis(2, "rho")),
    _single("deis_rhoab_3", order=2, rule=_deis(3, "rho"), low_start=True),
    _single("deis_log_rho_2", order=2, rule=_deis(2, "log_rho")),
    _single("bdia_deis_half", order=1, rule=_deis(3, "vp_time"), gamma=0.5),
    # Columns without coefficients: their bases. tests/samplers/test_fitted.py has the coefficients.
    _single("iia_ddim", order=1, columns=columns.differences),
    _single("iia_ipndm", order=2, rule=plms, columns=columns.differences, low_start=True),
    _single("iia_dpmpp", order=2, rule=dpmpp, final=ddim, columns=columns.newest),
    _single("ab_fitted", order=1, columns=columns.noises),
    _pndm("iia_spndm", start="heun", order=2, extra=1, columns=columns.differences),
    Entry("iia_edm", averaged, 2, two_but_the_last, two_a_step),
    Entry("biia_edm", partial(averaged, columns=slopes), 2, two_but_the_last, two_a_step),
    _pndm("plms", start="heun", order=4, extra=1),
    _pndm("bdia_plms_half", start="heun", order=4, extra=1, gamma=0.5),
    _pndm("s_pndm", start="heun", order=2, extra=1),
    _pndm("f_pndm", start="rk4", order=4, extra=9),
    Entry("bdia2_half", partial(bdia, gamma1=0.5, gamma2=0.5), 2, one_a_step, one_a_step),
    Entry("bdia2_1_0", partial(bdia, gamma1=1.0, gamma2=0.0), 2, one_a_step, one_a_step),
    _two("edict", 1, edict),
    _two("edict_alternating", 1, partial(edict, alternate=True)),
    _two("cbdia_0_1", 2, partial(cbdia, gamma1=0.0, gamma2=1.0)),
    _two("cbdia_1_0", 1, partial(cbdia, gamma1=1.0, gamma2=0.0)),
    _two("cbdia_4_96", 2, partial(cbdia, gamma1=0.04, gamma2=0.96)),
    _rex("euler", 1, 1),
    _rex("heun", 2, 2, predicts="data"),
    _rex("ssprk3", 3, 3, zeta=1.0),
    _rex("rk38", 4, 4),
    _rex("rk4", 4, 4, predicts="data"),
    _heun("edm"),
    _heun("bdia_edm_1", gamma=1.0),
    _heun("bdia_edm_half", gamma=0.5),
    _heun("bdia_edm_1_hat", gamma=1.0, refine="hat"),
    _heun("bdia_edm_half_hat", gamma=0.5, refine="hat"),
]

CHURN = partial(heun, S_churn=40.0, S_min=0.05, S_max=50.0, S_noise=1.003)
STOCHASTIC = [Entry("edm_churn", CHURN, 1, two_but_the_last, two_a_step)]
"""Samplers that draw noise: they have no order, and run on EDM's levels only."""


def _predictor(name: str, order: int, /, gamma: float = 0.0, **options) -> Entry:
    sampler = partial(multistep, rule=partial(predictor, **options), gamma=gamma)
    return Entry(name, sampler, order, one_a_step, one_a_step)


def _corrected(name: str, order: int, /, **options) -> Entry:
    sampler = partial(predict_correct, **options)
    return Entry(name, sampler, order, two_but_the_last, two_a_step)


LINEAR = [
    _single("gddim", order=1),
    _single("gddim_bdia_1", order=2, gamma=1.0),
    _single("gddim_bdia_half", order=1, gamma=0.5),
    *(_predictor(f"gddim_multistep_{order}", order, order=order) for order in (1, 2, 3)),
    _predictor("gddim_multistep_4", 3, order=4),  # its first steps are of lower orders
    _predictor("gddim_bdia_multistep_2", 1, gamma=1.0, order=2),
    *(
        _predictor(f"gddim_multistep_l_{order}", min(order, 2), order=order, K="L")
        for order in (1, 2, 3)
    ),
    *(_corrected(f"gddim_pc_{order}", order, order=order) for order in (1, 2, 3)),
    *(
        _corrected(f"gddim_pc_{order}_more", order + 1, order=order, points=order + 1)
        for order in (1, 2, 3)
    ),
    _heun("heun"),
    Entry("em_ode", partial(em, lam=0.0), 1, one_a_step, one_a_step),
]
"""Samplers on the levels of a linear diffusion."""


def _stages(steps: int) -> int:
    return 6 * steps + 1


LINEAR_OTHERS = [
    *(
        Entry(name, sampler, 1, one_a_step, one_a_step)
        for name, sampler in (("gddim_sde", stochastic), ("em", em), ("sscs", sscs))
    ),
    Entry("cld_rk45", rk45, 5, lambda steps: _stages(steps - 1), _stages),
]
"""The same, without an order: they draw noise, or choose their steps."""


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
