"""The cost of samplers: counted in few trials, for any number of evaluations."""

import time
from functools import partial

import pytest

from bdia_exp.errors import UserError
from bdia_exp.samplers import cost
from bdia_exp.samplers.core import CLEAN
from bdia_exp.samplers.cost import MOST, affordable, evaluations, grid_for
from bdia_exp.samplers.grids import karras, leading, quad, time_uniform
from bdia_exp.samplers.loops import heun, multistep, pndm
from bdia_exp.samplers.schedules import edm, linear_vp, rectified
from tests.laws import SAMPLERS

VP = linear_vp()
LEADING = partial(leading, schedule=VP)


@pytest.mark.parametrize("entry", SAMPLERS, ids=lambda entry: entry.name)
def test_every_cost_has_its_grid_and_others_name_their_neighbours(entry):
    """Against the costs of all numbers of steps, one after another."""
    grid = partial(quad, schedule=VP)
    costs = [evaluations(entry.sampler, grid(steps)) for steps in range(1, 11)]
    for nfe in range(1, costs[-1]):
        below = max((c for c in costs if c <= nfe), default=None)
        if below is None:
            with pytest.raises(UserError, match=f"choose {costs[0]} or more"):
                grid_for(entry.sampler, grid, nfe)
            continue
        steps = costs.index(below) + 1
        assert affordable(entry.sampler, grid, nfe) == (steps, below)
        if below == nfe:
            assert grid_for(entry.sampler, grid, nfe) == grid(steps)
        else:
            with pytest.raises(UserError, match=f"choose {below} or {costs[steps]}"):
                grid_for(entry.sampler, grid, nfe)


def test_few_trials_are_made(monkeypatch):
    calls = []

    def counted(sampler, grid):
        calls.append(len(grid) - 1)
        return evaluations(sampler, grid)

    monkeypatch.setattr(cost, "evaluations", counted)
    for sampler, nfe in [(multistep, 9000), (heun, 8999), (pndm, 1000)]:
        calls.clear()
        assert len(grid_for(sampler, karras, nfe)) > 500
        assert len(calls) <= 8, calls
        assert sum(calls) <= 2 * nfe


@pytest.mark.parametrize("nfe", [MOST + 1, 999_999_999, 10**12, 10**400])
def test_a_number_that_nobody_runs_is_refused_at_once(nfe):
    began = time.perf_counter()
    with pytest.raises(UserError, match=f"must be at most {MOST}"):
        grid_for(multistep, karras, nfe)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("sampler", "nfe", "most"), [(multistep, 600, 500), (heun, 1700, 1000), (pndm, 1002, 509)]
)
def test_a_table_of_times_names_its_own_limit(sampler, nfe, most):
    """And no number of an inner search: these grids have at most 500 steps."""
    with pytest.raises(
        UserError, match=f"nfe={nfe} is not possible: choose {most} or less"
    ) as said:
        grid_for(sampler, LEADING, nfe)
    assert "501 steps with an offset of 1 do not fit into 1000 times" in str(said.value)
    assert affordable(sampler, LEADING, nfe) == (500, most)


def test_a_sampler_whose_steps_become_dearer_is_counted_too():
    def dearer(model, z, grid):
        for place, level in enumerate(grid[:-1]):
            for _ in range(1 + place // 3):
                z = model(z, level).z
            yield z

    costs = [evaluations(dearer, karras(steps)) for steps in range(1, 13)]
    for nfe in range(1, costs[-1]):
        below = max(c for c in costs if c <= nfe)
        assert affordable(dearer, karras, nfe) == (costs.index(below) + 1, below)


@pytest.mark.parametrize("grid", [quad, leading, time_uniform])
@pytest.mark.parametrize("schedule", [edm, rectified, None])
def test_a_grid_of_whole_times_says_that_it_needs_a_table(grid, schedule):
    with pytest.raises(UserError, match="needs a model with a table of times: choose grid=karras"):
        grid(5, schedule)


@pytest.mark.parametrize("rho", [0, -1, 1e-308, 1e308, float("nan"), float("inf")])
def test_an_exponent_without_a_grid_is_refused(rho):
    with pytest.raises(UserError, match=r"grid.rho=.* must be 0.1 to 1000"):
        karras(5, rho=rho)


@pytest.mark.parametrize("span", [(0, 80), (1e-308, 80), (0.002, 1e308), (3, 2), (1, float("nan"))])
def test_a_range_without_a_grid_is_refused(span):
    with pytest.raises(UserError, match="must be 0 < min < max"):
        karras(5, sigma_min=span[0], sigma_max=span[1])


def test_extreme_exponents_keep_the_ends():
    with pytest.raises(UserError, match=r"grid.rho=0.1 is too small for this range"):
        karras(5, rho=0.1)
    for rho in (0.5, 1, 7, 1000):
        grid = karras(5, rho=rho)
        assert grid[0].sigma == pytest.approx(80, rel=1e-12)
        assert grid[-2].sigma == pytest.approx(0.002, rel=1e-6)
        assert grid[-1] == CLEAN
