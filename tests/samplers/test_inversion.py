"""From clean states to noise and back: what is exact is exact, and what is not is measured."""

import math
from functools import partial

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Counted, transfer
from bdia_exp.samplers.inversion import (
    BDIAInversion,
    CoupledInversion,
    DDIMInversion,
    FixedPointInversion,
    of,
)
from bdia_exp.samplers.loops import bdia, cbdia, edict, heun, multistep, rex
from bdia_exp.samplers.rules import deis, dpmpp, leapfrog
from tests.laws import GRIDS, MIXTURE, states, vp_arc

pytestmark = pytest.mark.quick

MODEL = MIXTURE.denoiser()
STEPS = 12
EXACT = {
    "bdia_1": partial(multistep, gamma=1.0),
    "bdia_0.92": partial(multistep, gamma=0.92),
    "bdia_list": partial(multistep, gamma=[1.5, 0.3, 1, "2/3", 0.9, -0.8, 1.1, 1, 0.7, 0.5, 0.4]),
    "obelm": partial(multistep, gamma="obelm"),
    "leapfrog": partial(multistep, rule=leapfrog),
    "edict": edict,
    "edict_alternating": partial(edict, p=0.97, alternate=True),
    "cbdia_0_1": partial(cbdia, gamma1=0.0, gamma2=1.0),
    "cbdia_1_0": partial(cbdia, gamma1=1.0, gamma2=0.0),
    "cbdia_4_96": partial(cbdia, gamma1=0.04, gamma2=0.96),
    "rex": rex,
    "rex_rk4_data": partial(rex, tableau="rk4", predicts="data"),
}
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)


def last(steps):
    *_, kept = steps
    return kept


def trip(inversion, x, grid):
    """The state at the end of both ways."""
    kept = last(inversion.encode(MODEL, x, grid))
    return last(inversion.decode(MODEL, kept, grid))["z"]


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@pytest.mark.parametrize("name", EXACT)
@every_grid
def test_exact_inversions_return_the_state(grid, name, clean):
    levels, inversion = grid(STEPS, clean=clean), of(EXACT[name])
    x = states(MIXTURE, levels[-1])
    error = (trip(inversion, x, levels) - x).abs().max()
    assert error < 1e-11 * inversion.growth(levels)


@pytest.mark.parametrize("name", EXACT)
def test_a_way_starts_from_what_the_other_kept(name):
    levels, inversion = vp_arc(STEPS, clean=True), of(EXACT[name])
    there = last(inversion.encode(MODEL, states(MIXTURE, levels[-1]), levels))
    back = last(inversion.decode(MODEL, there, levels))
    again = last(inversion.encode(MODEL, back, levels))
    assert (again["z"] - there["z"]).abs().max() < 1e-11 * inversion.growth(levels)


@pytest.mark.parametrize("state", [1.0, 0.9, 0.5])
@every_grid
def test_fixed_point_returns_every_bit(grid, state):
    levels, inversion = grid(STEPS, clean=True), of(partial(multistep, gamma=state), state="fixed")
    assert isinstance(inversion, FixedPointInversion)
    kept = list(inversion.encode(MODEL, states(MIXTURE, levels[-1]), levels))
    start = last(inversion.decode(MODEL, kept[-1], levels))
    middle = list(inversion.decode(MODEL, kept[-1], levels))[STEPS // 2]
    assert torch.equal(middle["z.fixed"], kept[STEPS - 2 - STEPS // 2]["z.fixed"])
    assert torch.equal(start["z"], (states(MIXTURE, levels[-1]) * 2**32).round() / 2**32)


@pytest.mark.parametrize("time", ["target", "own"])
@every_grid
def test_ddim_inversion_is_an_approximation(grid, time):
    levels = grid(STEPS, clean=True)
    x = states(MIXTURE, levels[-1])
    error = (trip(of(multistep, time=time), x, levels) - x).abs().max()
    assert error > 1e-2
    finer = grid(STEPS * 16, clean=True)
    assert (trip(of(multistep, time=time), x, finer) - x).abs().max() < error / 3


def test_ddim_inversion_asks_about_the_level_of_the_paper():
    levels = vp_arc(1)
    x = states(MIXTURE, levels[1])
    eq10 = transfer(x, MODEL(x, levels[0]).eps, levels[1], levels[0])
    own = transfer(x, MODEL(x, levels[1]).eps, levels[1], levels[0])
    assert torch.equal(last(DDIMInversion().encode(MODEL, x, levels))["z"], eq10)
    assert torch.equal(last(DDIMInversion("own").encode(MODEL, x, levels))["z"], own)
    assert torch.equal(next(multistep(MODEL, x, levels[::-1])), own)


@pytest.mark.parametrize(
    ("inversion", "there", "back"),
    [
        (DDIMInversion(), STEPS, STEPS),
        (BDIAInversion(), STEPS, STEPS - 1),
        (FixedPointInversion(), STEPS, STEPS - 1),
        (of(edict), 2 * STEPS, 2 * STEPS),
        (of(EXACT["cbdia_4_96"]), 2 * STEPS, 2 * STEPS),
        (of(EXACT["rex_rk4_data"]), 8 * STEPS, 8 * STEPS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_evaluations_of_both_ways(inversion, there, back):
    levels, model = vp_arc(STEPS), Counted(MODEL)
    kept = list(inversion.encode(model, states(MIXTURE, levels[-1]), levels))
    assert (len(kept), model.nfe) == (STEPS, there)
    model = Counted(MODEL)
    assert len(list(inversion.decode(model, kept[-1], levels))) == STEPS
    assert model.nfe == back


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_few_steps(name, steps):
    levels = vp_arc(steps, clean=True)
    x = states(MIXTURE, levels[-1])
    assert (trip(of(EXACT[name]), x, levels) - x).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_fixed_point_with_another_network_follows_the_same_formula(gamma):
    """As an edit does it: the digits of the way there mean nothing to another network."""
    levels, other = vp_arc(STEPS, clean=True), states(MIXTURE, vp_arc(1)[0]).mean()
    x = states(MIXTURE, levels[-1])

    def model(z, level):
        estimate = MODEL(z, level)
        return estimate._replace(eps=estimate.eps + 0.1 * other)

    ends = []
    for state in ("float64", "fixed"):
        inversion = of(partial(multistep, gamma=gamma), state=state)
        kept = last(inversion.encode(MODEL, x, levels))
        ends.append(last(inversion.decode(model, kept, levels, same=False))["z"])
    assert (ends[0] - ends[1]).abs().max() < 1e-6
    assert (ends[0] - x).abs().max() > 1e-3


def test_declared_growth_and_a_long_trip():
    """Errors of 40 steps grow by less than what is declared."""
    levels, inversion = vp_arc(40), of(EXACT["cbdia_4_96"])
    assert isinstance(inversion, CoupledInversion)
    assert inversion.growth(levels) == pytest.approx(0.92**-40)
    assert of(edict).growth(levels) == pytest.approx(0.93**-80)
    assert of(partial(multistep, gamma=0.5)).growth(levels) == 2**39
    assert of(partial(multistep, gamma=[0.5, -0.25, 2.0])).growth(levels[:5]) == 4
    many = vp_arc(400)
    assert of(partial(multistep, gamma=0.1), state="fixed").growth(many) == math.inf
    close = partial(cbdia, gamma1=0.5, gamma2=0.501)
    for sampler in (partial(edict, p=1e-200), close, partial(rex, zeta=0.1)):
        assert of(sampler).growth(many) == math.inf
    x = states(MIXTURE, levels[-1])
    assert (trip(inversion, x, levels) - x).abs().max() < 1e-9


@pytest.mark.parametrize(
    "sampler",
    [
        heun,
        partial(multistep, rule=dpmpp, gamma=0.5),
        partial(multistep, rule=deis),
        partial(multistep, rule=leapfrog, gamma=0.5),
        partial(bdia, gamma1=0.5, gamma2=0.5),
    ],
)
def test_a_sampler_without_an_inverse_is_refused(sampler):
    with pytest.raises(UserError, match="has no inverse: choose sampler=bdia_ddim"):
        of(sampler)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"state": "fixd"}, "did you mean 'fixed'"),
        ({"state": "fixed"}, "state=fixed is for sampler=bdia_ddim"),
        ({"time": "mine"}, "ddim_time='mine' is unknown"),
    ],
)
def test_unknown_options_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        of(multistep, **options)
