"""O-BELM as printed, and its place among BDIA's samplers [BELM 15, 17]."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Level
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.inversion import of
from bdia_exp.samplers.loops import heun, multistep
from bdia_exp.samplers.rules import dpmpp
from bdia_exp.samplers.schedules import edm, linear_vp
from bdia_exp.samplers.weights import each_gamma, obelm
from tests.laws import GRIDS, MIXTURE, states

pytestmark = pytest.mark.quick

MODEL = MIXTURE.denoiser()


def o_belm(z, grid):
    """The printed rule, with its three coefficients; the first step is DDIM's."""
    found, past = [], None
    for place, (t, s) in enumerate(pairwise(grid)):
        eps = MODEL(z, t).eps
        if place == 0:
            ahead = s.alpha / t.alpha * z + (s.sigma - s.alpha / t.alpha * t.sigma) * eps
        else:
            p = grid[place - 1]
            first, second = t.rho - p.rho, s.rho - t.rho
            third = s.rho - p.rho
            ahead = (
                second * third / first * s.alpha * eps
                + (second / first) ** 2 * s.alpha / p.alpha * past
                + (first - second) * third / first**2 * s.alpha / t.alpha * z
            )
        past, z = z, ahead
        found.append(z)
    return found


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@pytest.mark.parametrize("make", GRIDS)
def test_belm_15_is_bdia_with_the_grid_s_gamma(make, clean):
    grid = make(12, clean=clean)
    z = states(MIXTURE, grid[0])
    ours = multistep(MODEL, z, grid, gamma="obelm")
    for state, printed in zip(ours, o_belm(z, grid), strict=True):
        assert (state - printed).abs().max() < 1e-14 * max(1, float(printed.abs().max()))


@pytest.mark.parametrize("make", GRIDS)
def test_belm_17_the_inverse_exchanges_past_and_next(make):
    """Going back, γ is the reciprocal: the printed rule on the reversed grid."""
    grid = make(12)
    there, back = obelm(grid), obelm(grid[::-1])
    assert [1 / gamma for gamma in reversed(there)] == pytest.approx(back, rel=1e-12)
    assert of(partial(multistep, gamma="obelm")).growth(grid) == pytest.approx(
        torch.tensor(back).double().abs().prod().item()
    )


def test_on_even_levels_it_is_leapfrog():
    grid = tuple(edm(s / 4) for s in range(20, 0, -1))
    assert obelm(grid) == pytest.approx([1.0] * 18)


def test_a_level_that_repeats_or_pure_noise_gives_a_step_of_ddim():
    schedule = linear_vp()
    repeated = (schedule(400), schedule(200), schedule(200), schedule(100))
    assert obelm(repeated) == [0, 0]
    noise = (Level(0.0, 1.0, 1.0), schedule(900), schedule(500), schedule(100))
    assert obelm(noise)[0] == 0 < obelm(noise)[1]
    with pytest.raises(UserError, match="is 0 at step 2 of 3, which cannot be undone"):
        of(partial(multistep, gamma="obelm")).growth(repeated)


def test_a_list_of_gamma_belongs_to_the_last_steps():
    grid = karras(4)
    assert each_gamma([9.0, 1, "1/2", 0.25], grid) == [1, 0.5, 0.25]
    assert each_gamma([1, "1/2", 0.25], grid) == [1, 0.5, 0.25]
    z = states(MIXTURE, grid[0])
    by_list = multistep(MODEL, z, grid, gamma=[0.7] * 3)
    by_one = multistep(MODEL, z, grid, gamma=0.7)
    assert all(map(torch.equal, by_list, by_one))
    for gamma, message in {
        (1.0, 0.5): "has 2 numbers, and a grid of 4 steps needs 3",
        (1.0, "half", 0.5): "half is no number",
        (1.0, "1/0", 0.5): "1/0 is no number",
    }.items():
        with pytest.raises(UserError, match=message):
            [*multistep(MODEL, z, grid, gamma=[*gamma])]
    with pytest.raises(UserError, match="is for sampler=bdia_ddim"):
        [*heun(MODEL, z, grid, gamma="obelm")]
    with pytest.raises(UserError, match="has no inverse"):
        of(partial(multistep, rule=dpmpp, gamma="obelm"))


@pytest.mark.parametrize("make", GRIDS)
def test_fixed_point_with_a_gamma_a_step_returns_every_bit(make):
    grid = make(12)
    sampler = partial(multistep, gamma=[1.25, 0.3, 1, "2/3", 0.9, 0.8, 1.1, 1, 0.7, 0.5, 0.4])
    way = of(sampler, state="fixed")
    x = states(MIXTURE, grid[-1])
    *_, kept = way.encode(MODEL, x, grid)
    *_, back = way.decode(MODEL, kept, grid)
    exact = of(sampler)
    *_, float_kept = exact.encode(MODEL, x, grid)
    assert (kept["z"] - float_kept["z"]).abs().max() < 1e-4
    assert (back["z"] - x).abs().max() <= 2.0**-33
    negative = of(partial(multistep, gamma=[1, -0.5]), state="fixed")
    with pytest.raises(UserError, match="cannot be undone in fixed point"):
        next(negative.encode(MODEL, x, grid[:4]))
