"""Laws that every sampler of SAMPLERS obeys, on exact densities in float64."""

import math
from functools import partial

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import CLEAN, Counted, Estimate, Grid, Level
from bdia_exp.samplers.cost import evaluations, grid_for
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.loops import bdia, heun, multistep, pndm
from bdia_exp.samplers.rules import deis
from bdia_exp.samplers.starts import halfway
from tests.laws import (
    GAUSSIAN,
    GRIDS,
    MIXTURE,
    SAMPLERS,
    STOCHASTIC,
    end,
    states,
    ve_power,
    vp_arc,
)

pytestmark = pytest.mark.quick

every_sampler = pytest.mark.parametrize("entry", SAMPLERS, ids=str)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)
MODEL = MIXTURE.denoiser()


@every_sampler
@every_grid
def test_order_of_convergence(entry, grid):
    def error(steps: int) -> float:
        levels = grid(steps)
        z = states(GAUSSIAN, levels[0], 16)
        exact = GAUSSIAN.flow(z, levels[0], levels[-1])
        return float((end(entry.sampler, GAUSSIAN.denoiser(), z, levels) - exact).abs().max())

    order = math.log2(error(128) / error(256))
    assert order > entry.order - 0.25
    if not entry.low_start:
        assert order < entry.order + 0.3


@every_grid
@pytest.mark.parametrize("entry", [e for e in SAMPLERS if e.base], ids=str)
def test_gamma_zero_is_the_base_method(entry, grid):
    levels = grid(9, clean=True)
    z = states(MIXTURE, levels[0])
    base = list(entry.base(MODEL, z, levels))
    at_zero = list(partial(entry.sampler, gamma=0.0)(MODEL, z, levels))
    assert len(base) == len(at_zero) == 9
    assert all(torch.equal(a, b) for a, b in zip(at_zero, base, strict=True))
    at_gamma = list(entry.sampler(MODEL, z, levels))
    assert torch.equal(at_gamma[0], base[0]), "the first step has no past"
    assert (at_gamma[-1] - base[-1]).abs().max() > 1e-3


@every_sampler
@every_grid
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
def test_counted_evaluations_are_the_declared_ones(entry, grid, clean):
    for steps in (2, 5):
        levels = grid(steps, clean=clean)
        counted = Counted(MODEL)
        end(entry.sampler, counted, states(MIXTURE, levels[0]), levels)
        declared = (entry.nfe_to_clean if clean else entry.nfe_to_noisy)(steps)
        assert counted.nfe == declared == evaluations(entry.sampler, levels)


@every_sampler
def test_batch_size_does_not_change_an_image(entry):
    levels = vp_arc(6, clean=True)
    z = states(MIXTURE, levels[0], 7)
    whole = end(entry.sampler, MODEL, z, levels)
    parts = [end(entry.sampler, MODEL, part, levels) for part in z.split([1, 4, 2])]
    assert torch.equal(torch.cat(parts), whole)


@every_sampler
def test_samples_land_on_the_data(entry):
    levels = vp_arc(200, clean=True)
    z = states(MIXTURE, levels[0], 400)
    x, data = end(entry.sampler, MODEL, z, levels).flatten(1), states(MIXTURE, levels[-1], 4000)
    assert (x.mean(0) - data.flatten(1).mean(0)).abs().max() < 0.3
    assert (x.std(0) / data.flatten(1).std(0) - 1).abs().max() < 0.2


# --- Round trips: the same loop on grid[::-1] with 1/γ, restarted from the last two states ---


def run_back(z: torch.Tensor, past: torch.Tensor, grid: Grid, gamma: float) -> list[torch.Tensor]:
    """All states of the reversed grid from the third on, given its first two."""
    restart = Estimate(grid[-1], past, torch.zeros_like(past))  # its noise estimate is not used
    return list(multistep(MODEL, z, grid[:-1][::-1], gamma=1 / gamma, trail=[restart]))


def round_trip_error(grid: Grid, gamma: float) -> float:
    z = states(MIXTURE, grid[0])
    trajectory = [z, *multistep(MODEL, z, grid, gamma=gamma)]
    back = run_back(trajectory[-2], trajectory[-1], grid, gamma)
    expected = trajectory[:-2][::-1]
    return max(float((a - b).abs().max()) for a, b in zip(back, expected, strict=True))


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@pytest.mark.parametrize("entry", [e for e in SAMPLERS if e.exact], ids=str)
@every_grid
def test_round_trip_is_exact(entry, grid, clean):
    steps = 20
    bound = 1e-13 * entry.gamma**-steps
    assert round_trip_error(grid(steps, clean=clean), entry.gamma) < bound


@every_grid
def test_ddim_inversion_is_not_exact(grid):
    levels = grid(20)
    z = states(MIXTURE, levels[0])
    x = end(multistep, MODEL, z, levels)
    back = end(multistep, MODEL, x, levels[::-1])
    assert (back - z).abs().max() > 1e-2


def test_round_trip_error_grows_like_powers_of_one_over_gamma():
    """log(error) falls with γ at the rate N: the warning about stability is real."""
    steps = 40
    half, most = (round_trip_error(vp_arc(steps), gamma) for gamma in (0.5, 0.8))
    measured = math.log2(half / most) / math.log2(0.8 / 0.5)
    assert measured == pytest.approx(steps, abs=8)
    assert half > 1e-6


def test_restart_continues_a_trajectory():
    levels = vp_arc(8)
    trajectory = list(multistep(MODEL, states(MIXTURE, levels[0]), levels, gamma=0.7))
    past = MODEL(trajectory[2], levels[3])
    again = list(multistep(MODEL, trajectory[3], levels[4:], gamma=0.7, trail=[past]))
    assert all(torch.equal(a, b) for a, b in zip(again, trajectory[4:], strict=True))


# --- Coordinates ---


@pytest.mark.parametrize(("gamma", "invariant"), [(0.0, True), (1.0, False)])
def test_only_ddim_ignores_a_rescaling_of_vp_to_ve(gamma, invariant):
    vp = vp_arc(10)
    ve = tuple(Level(1.0, level.sigma / level.alpha, level.time) for level in vp)
    z = states(MIXTURE, vp[0])
    sampler = partial(multistep, gamma=gamma)
    x_vp = end(sampler, MODEL, z, vp) / vp[-1].alpha
    x_ve = end(sampler, MODEL, z / vp[0].alpha, ve)
    difference = (x_vp - x_ve).abs().max()
    assert difference < 1e-12 if invariant else difference > 1e-2


# --- A given number of evaluations ---


@every_sampler
def test_grid_for_spends_exactly_what_is_asked(entry):
    for steps in (1, 2, 18):
        nfe = entry.nfe_to_clean(steps)
        levels = grid_for(entry.sampler, karras, nfe)
        assert levels == karras(steps)
        assert evaluations(entry.sampler, levels) == nfe


@pytest.mark.parametrize(
    ("nfe", "possible"),
    [(36, "35 or 37"), (2, "1 or 3"), (0, "1 or more"), (-3, "1 or more")],
)
def test_grid_for_names_the_nearest_possible_numbers(nfe, possible):
    with pytest.raises(UserError, match=f"nfe={nfe} is not possible .*: choose {possible}$"):
        grid_for(partial(heun, gamma=1.0), karras, nfe)


@pytest.mark.parametrize(
    ("loop", "key"),
    [
        (multistep, "gamma"),
        (heun, "gamma"),
        (partial(bdia, gamma2=0.5), "gamma1"),
        (partial(bdia, gamma1=0.5), "gamma2"),
    ],
)
@pytest.mark.parametrize("gamma", [-0.5, math.nan])
def test_a_negative_gamma_is_refused_by_its_key(loop, key, gamma):
    levels = vp_arc(2)
    with pytest.raises(UserError, match=rf"^sampler\.{key}={gamma} must not be negative"):
        end(partial(loop, **{key: gamma}), MODEL, states(MIXTURE, levels[0]), levels)


def test_an_unknown_refinement_is_refused():
    levels = vp_arc(2)
    with pytest.raises(UserError, match="did you mean 'hat'"):
        end(partial(heun, refine="hatt"), MODEL, states(MIXTURE, levels[0]), levels)


# --- Samplers that draw noise ---


@pytest.mark.parametrize("entry", STOCHASTIC, ids=str)
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
def test_a_stochastic_sampler_spends_what_it_declares(entry, clean):
    levels = ve_power(5, clean=clean)
    declared = (entry.nfe_to_clean if clean else entry.nfe_to_noisy)(5)
    assert evaluations(entry.sampler, levels) == declared


@pytest.mark.parametrize("entry", STOCHASTIC, ids=str)
def test_a_stochastic_sampler_lands_on_the_data(entry):
    levels = ve_power(200, clean=True)
    z = states(MIXTURE, levels[0], 400)
    torch.manual_seed(0)
    x, data = end(entry.sampler, MODEL, z, levels).flatten(1), states(MIXTURE, levels[-1], 4000)
    assert (x.mean(0) - data.flatten(1).mean(0)).abs().max() < 0.3
    assert (x.std(0) / data.flatten(1).std(0) - 1).abs().max() < 0.2
    assert not torch.equal(x, end(entry.sampler, MODEL, z, levels).flatten(1)), "it draws anew"


def test_churn_is_refused_with_bdia_and_off_edm_levels():
    z = states(MIXTURE, vp_arc(3)[0])
    with pytest.raises(UserError, match=r"sampler\.gamma=0"):
        end(partial(heun, S_churn=1.0, gamma=1.0), MODEL, z, ve_power(3))
    with pytest.raises(UserError, match="grid=karras"):
        end(partial(heun, S_churn=1.0), MODEL, z, vp_arc(3))


@pytest.mark.parametrize("option", [{"start": "huen"}, {"order": 5}])
def test_pndm_refuses_what_it_does_not_know(option):
    levels = vp_arc(5)
    with pytest.raises(UserError):
        end(partial(pndm, **option), MODEL, states(MIXTURE, levels[0]), levels)


@pytest.mark.parametrize("repeats", [1, 3])
def test_only_the_evaluations_that_rules_may_use_are_kept(repeats):
    """A polynomial of order 4 needs four different levels; a grid may repeat them."""
    grid = tuple(level for level in karras(40)[:-1] for _ in range(repeats))
    seen = []

    def rule(trail, t):
        seen.append(len(trail))
        return deis(trail, t, order=4)

    z = states(MIXTURE, grid[0])
    ends = [end(partial(multistep, rule=one), MODEL, z, grid) for one in (rule, whole_trail())]
    assert torch.equal(*ends)
    assert max(seen) <= 3 * repeats + 1


def whole_trail():
    """`deis` of order 4, with a trail of its own that is never cut."""
    kept: list[Estimate] = []

    def rule(trail, t):
        kept.append(trail[-1])
        return deis(kept, t, order=4)

    return rule


def test_halfway_to_a_clean_level_is_not_clean():
    middle = halfway(vp_arc(4)[2], CLEAN)
    assert middle.rho == pytest.approx(vp_arc(4)[2].rho / 2)
    assert math.hypot(middle.alpha, middle.sigma) == pytest.approx(1)


def test_a_logarithmic_clock_refuses_a_clean_level():
    levels = vp_arc(3, clean=True)[::-1]
    rule = partial(deis, clock="log_rho")
    with pytest.raises(UserError, match="choose vp_time or rho"):
        end(partial(multistep, rule=rule), MODEL, states(MIXTURE, levels[0]), levels)
