"""Grids: published figures, and what every grid has in common."""

import math
from functools import partial
from itertools import pairwise

import pytest

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import CLEAN
from bdia_exp.samplers.grids import (
    arc,
    deis_quad,
    karras,
    leading,
    linspace,
    quad,
    quad_full,
    time_uniform,
    trailing,
    uniform,
)
from bdia_exp.samplers.schedules import linear_vp, scaled_linear_vp

pytestmark = pytest.mark.quick

VP = linear_vp()
SD = scaled_linear_vp()
SPACED = [leading, partial(leading, offset=0), trailing, linspace, time_uniform]
DISCRETE = [uniform, quad, quad_full, deis_quad, partial(deis_quad, last_step=True)]


def times(grid) -> list[int]:
    return [int(level.time) for level in grid]


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [
        (18, (80, 57.586, 40.7856), (0.0229345, 0.00752802, 0.002)),
        (20, (80, 59.6575, 43.9203), (0.0184008, 0.00662171, 0.002)),
        (22, (80, 61.381, 46.607), (0.0153157, 0.00595814, 0.002)),
        (24, (80, 62.8367, 48.9315), (0.0131125, 0.00545379, 0.002)),
    ],
)
def test_karras_at_the_table_s_step_counts(steps, first, last):
    grid = karras(steps)
    sigmas = [level.sigma for level in grid]
    assert len(grid) == steps + 1
    assert sigmas[:3] == pytest.approx(first, rel=1e-5)
    assert sigmas[-4:-1] == pytest.approx(last, rel=1e-5)
    assert grid[-1] == CLEAN
    assert all(level.alpha == 1 and level.time == level.sigma for level in grid)


def test_karras_with_one_step_goes_from_the_noisiest_level_to_the_clean_one():
    assert [level.sigma for level in karras(1)] == pytest.approx([80.0, 0.0])


@pytest.mark.parametrize("grid", [karras, arc])
@pytest.mark.parametrize(("low", "high"), [(0.0, 80.0), (80.0, 0.002), (1.0, 1.0)])
def test_a_wrong_range_is_refused(grid, low, high):
    with pytest.raises(UserError, match="0 < min < max"):
        grid(5, sigma_min=low, sigma_max=high)


def test_arc_is_evenly_spaced_between_its_ends():
    grid = arc(7, VP, sigma_min=0.05, sigma_max=20.0)
    assert len(grid) == 8
    assert [grid[0].rho, grid[-1].rho] == pytest.approx([20.0, 0.05])
    angles = [math.atan2(level.sigma, level.alpha) for level in grid]
    steps = [b - a for a, b in pairwise(angles)]
    assert steps == pytest.approx([steps[0]] * 7)
    assert all(level.alpha**2 + level.sigma**2 == pytest.approx(1) for level in grid)
    own = [VP.at(level.rho).time for level in grid]
    assert [level.time for level in grid] == pytest.approx(own)
    assert all(level.time == pytest.approx(math.atan(level.rho)) for level in arc(7))


def test_arc_ends_where_the_schedule_does():
    with pytest.raises(UserError, match=r"grid\.sigma_max="):
        arc(5, VP, sigma_max=500.0)


@pytest.mark.parametrize("steps", [1, 10, 20, 40, 1000])
def test_uniform_is_the_usual_range(steps):
    usual = list(range(0, 1000, 1000 // steps))[::-1]
    assert times(uniform(steps, VP)) == [*usual, 0]


def test_uniform_keeps_its_number_of_steps_when_it_does_not_divide():
    assert times(uniform(3, VP)) == [666, 333, 0, 0]


QUAD_10 = [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
QUAD_20 = [0, 2, 8, 19, 35, 55, 79, 108, 141, 179]
QUAD_20 += [221, 268, 319, 374, 434, 498, 567, 640, 718, 800]


def test_quad_has_the_official_times():
    assert times(quad(10, VP)) == [*QUAD_10[::-1], 0]
    assert times(quad(20, VP)) == [*QUAD_20[::-1], 0]
    assert times(quad(40, VP))[-6:-1] == [8, 4, 2, 0, 0]


def test_deis_quad_has_the_official_times():
    expected = [0, 9, 39, 89, 159, 249, 359, 489, 639, 809, 998]
    assert times(deis_quad(10, VP)) == expected[::-1]
    expected = [0, 1, 19, 60, 125, 213, 324, 458, 615, 795, 998]
    assert times(deis_quad(10, VP, last_step=True)) == expected[::-1]


def test_quad_full_reaches_further_than_quad():
    assert times(quad_full(10, VP))[0] == 998
    assert times(quad_full(10, VP))[-2:] == [0, 0]


def test_leading_is_stable_diffusion_s_own_spacing():
    assert times(leading(10, SD)) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert times(leading(40, SD))[:2] == [976, 951]
    assert times(leading(50, SD, offset=0))[-3:] == [20, 0, 0]
    assert leading(10, SD)[-1] == SD(0)
    assert leading(10, SD, final="clean")[-1] == CLEAN


def test_trailing_and_linspace_are_diffusers_spacings():
    assert times(trailing(10, SD))[:3] == [999, 899, 799]
    assert times(trailing(3, SD)) == [999, 666, 332, 0]
    assert times(linspace(10, SD)) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, 0]
    assert times(linspace(1, SD)) == [999, 0]


def test_time_uniform_reads_the_schedule_between_its_times():
    grid = time_uniform(10, SD)
    assert [level.time for level in grid] == pytest.approx([999 - 99.9 * i for i in range(11)])
    assert grid[0] == pytest.approx(SD(999))
    assert grid[-1] == SD(0)
    logs = [math.log(SD(k).alpha) for k in (899, 900)]
    assert math.log(grid[1].alpha) == pytest.approx(0.9 * logs[0] + 0.1 * logs[1])
    whole = time_uniform(10, SD, whole=True)
    assert times(whole) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0]
    assert whole[1] == pytest.approx(SD(899))


@pytest.mark.parametrize("grid", SPACED)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 40])
def test_every_grid_of_stable_diffusion_has_its_length_and_falls(grid, steps):
    levels = grid(steps, SD)
    sigmas = [level.sigma for level in levels]
    assert len(levels) == steps + 1
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(0 <= level.time < len(SD) for level in levels), "a time the network knows"


@pytest.mark.parametrize("grid", SPACED)
def test_more_steps_than_times_are_refused(grid):
    with pytest.raises(UserError, match="use fewer steps"):
        grid(1001, SD)


def test_an_unknown_final_is_named():
    with pytest.raises(UserError, match="did you mean 'first'"):
        leading(10, SD, final="fist")


@pytest.mark.parametrize("grid", DISCRETE)
def test_ddim_pairing_reads_the_time_s_own_level(grid):
    levels = grid(10, VP)
    own = [VP(int(level.time)) for level in levels]
    ends_clean = grid in (uniform, quad, quad_full)
    assert list(levels[:-1]) == own[:-1]
    assert levels[-1] == (CLEAN if ends_clean else VP(0))


@pytest.mark.parametrize("grid", DISCRETE)
def test_pndm_pairing_reads_the_next_noisier_level_and_ends_at_abar_0(grid):
    levels, plain = grid(10, VP, pairing="pndm"), grid(10, VP)
    assert times(levels) == times(plain)
    assert all(level.alpha == VP(int(level.time) + 1).alpha for level in levels[:-1])
    if grid in (uniform, quad, quad_full):
        assert levels[-1] == VP(0)
    assert all(a.sigma > b.sigma for a, b in zip(levels, plain, strict=True))


@pytest.mark.parametrize("grid", DISCRETE)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 40])
def test_every_grid_has_its_length_and_falls(grid, steps):
    levels = grid(steps, VP)
    sigmas = [level.sigma for level in levels]
    assert len(levels) == steps + 1
    assert sigmas == sorted(sigmas, reverse=True)
    assert levels[0].sigma > 0.9 or grid is uniform
    assert all(level.alpha**2 + level.sigma**2 == pytest.approx(1) for level in levels)
    assert all(0 <= level.time < len(VP) for level in levels), "a time the network knows"


def test_an_unknown_pairing_is_named():
    with pytest.raises(UserError, match="did you mean 'pndm'"):
        uniform(10, VP, pairing="pndn")
