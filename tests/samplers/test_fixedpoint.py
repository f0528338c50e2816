"""BDIA-DDIM in fixed point comes back with every bit, whatever γ, the steps and the network."""

import math

import pytest
import torch
from torch import Tensor

from bdia_exp.samplers.core import Estimate, Grid, Level
from bdia_exp.samplers.fixedpoint import HALF, Log, bdia_ddim, quantise, rational, undo, value
from bdia_exp.samplers.grids import quad
from bdia_exp.samplers.loops import multistep
from bdia_exp.samplers.schedules import linear_vp
from tests.laws import GRIDS, MIXTURE, states, ve_power, vp_arc
from tests.samplers.round_trips import MODEL, both_ways, every_gamma, same, there_and_back

pytestmark = pytest.mark.quick


# --- The law ---


@every_gamma
@both_ways
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@pytest.mark.parametrize("levels", GRIDS, ids=lambda grid: grid.__name__)
def test_every_state_comes_back(levels, clean, steps, gamma, to_noise):
    if levels is ve_power and clean and steps == 1:
        pytest.skip("this grid has at least two steps")
    grid = levels(steps, clean=clean)
    start = quantise(states(MIXTURE, grid[-1 if to_noise else 0]))
    there_and_back(MODEL, start, grid, gamma, to_noise=to_noise)


def test_a_level_that_occurs_twice():
    grid = quad(60, linear_vp())
    assert len(set(grid)) < len(grid)
    start = quantise(states(MIXTURE, grid[-1]))
    there_and_back(MODEL, start, grid, rational(0.92), to_noise=True)


def test_states_that_leave_the_range_are_wrapped_and_come_back():
    grid = vp_arc(60)
    start = quantise(states(MIXTURE, grid[-1]))
    log, pairs = there_and_back(MODEL, start, grid, rational(0.5), to_noise=True)
    assert log.wrapped > 0
    assert any(carry is None for carry in log.carries), "none is kept where none is needed"
    assert max(log.bits()) >= 16
    assert all(z.min() >= -HALF and z.max() < HALF for pair in pairs for z in pair)


def test_words_that_fill_up_are_put_away_and_come_back():
    grid = vp_arc(100)
    start = quantise(states(MIXTURE, grid[0]))
    log, _ = there_and_back(MODEL, start, grid, rational(0.1), to_noise=False)
    assert len(log.words) == 5
    assert all((word >= 0).all() for word in log.words)


@both_ways
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_network_that_breaks_down(bad, to_noise):
    def broken(z: Tensor, level: Level) -> Estimate:
        eps = z.clone()
        eps[::2] = bad
        return Estimate(level, z, eps)

    start = quantise(torch.randn(4, 1, 2, 3).double())
    log, _ = there_and_back(broken, start, vp_arc(30), rational(0.75), to_noise=to_noise)
    assert log.clipped > 0


def round_trip_in_float(z: Tensor, grid: Grid, gamma: float) -> Tensor:
    """The start as `multistep` finds it again from its last two states."""
    trajectory = [z, *multistep(MODEL, z, grid, gamma=gamma)]
    restart = Estimate(grid[-1], trajectory[-1], torch.zeros_like(z))
    *_, back = multistep(MODEL, trajectory[-2], grid[:-1][::-1], gamma=1 / gamma, trail=[restart])
    return back


@pytest.mark.parametrize("gamma", [1.0, 0.92, 0.5])
def test_floating_point_does_not_come_back(gamma):
    grid = vp_arc(40)
    z = states(MIXTURE, grid[0])
    assert not torch.equal(round_trip_in_float(z, grid, gamma), z)


# --- It is BDIA-DDIM ---


@both_ways
@pytest.mark.parametrize("levels", GRIDS, ids=lambda grid: grid.__name__)
@pytest.mark.parametrize("gamma", [1.0, 0.98, 0.92])
@pytest.mark.parametrize(("fraction_bits", "tolerance"), [(32, 1e-6), (40, 1e-8)])
def test_agrees_with_multistep(levels, gamma, fraction_bits, tolerance, to_noise):
    exact, grid = rational(gamma), levels(20)
    if to_noise:
        grid, gamma, exact = grid[::-1], 1 / gamma, 1 / exact
    z = states(MIXTURE, grid[0])
    log = Log(fraction_bits)
    pairs = bdia_ddim(MODEL, quantise(z, fraction_bits), grid, gamma=exact, log=log)
    ours = [value(newer, fraction_bits) for _, newer in pairs]
    for a, b in zip(ours, multistep(MODEL, z, grid, gamma=gamma), strict=True):
        assert (a - b).abs().max() < tolerance
    assert log.clipped == log.wrapped == 0


def test_goes_on_from_a_pair():
    grid, gamma = vp_arc(9), rational(0.75)
    log = Log()
    pairs = list(bdia_ddim(MODEL, quantise(states(MIXTURE, grid[0])), grid, gamma=gamma, log=log))
    log = Log()
    head = list(bdia_ddim(MODEL, pairs[0], grid[:5], gamma=gamma, log=log))
    tail = list(bdia_ddim(MODEL, head[-1], grid[3:], gamma=gamma, log=log))
    assert all(same(a, b) for a, b in zip(head + tail[1:], pairs, strict=True))
    back = list(undo(MODEL, tail[-1], grid, log))
    assert all(same(a, b) for a, b in zip(back, pairs[::-1], strict=True))


def test_a_new_pass_from_the_noisy_pair_finds_the_image():
    """How an edit starts: with a log of its own, so only as near as the rounding allows."""
    grid, gamma = vp_arc(20), rational(0.92)
    start = quantise(states(MIXTURE, grid[-1]))
    *_, pair = bdia_ddim(MODEL, start, grid[::-1], gamma=1 / gamma, log=Log())
    *_, (_, image) = bdia_ddim(MODEL, pair[::-1], grid, gamma=gamma, log=Log())
    assert (value(image) - value(start)).abs().max() < 1e-6


def test_a_pass_may_be_stopped_after_any_pair():
    grid, log = vp_arc(9), Log()
    start = quantise(states(MIXTURE, grid[0]))
    passing = bdia_ddim(MODEL, start, grid, gamma=rational(0.92), log=log)
    for _ in range(4):
        pair = next(passing)
    passing.close()
    *_, (back, _) = undo(MODEL, pair, grid[:5], log)
    assert torch.equal(back, start)
