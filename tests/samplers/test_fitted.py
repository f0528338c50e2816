"""Laws of a fit, on the mixture and the Gaussian: residuals, base methods, targets."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.models.toy import Gaussian
from bdia_exp.samplers import columns, iia_edm
from bdia_exp.samplers.fitted import Bounds, Fit, Watch, least_squares, rms
from bdia_exp.samplers.grids import karras, quadratic_time
from bdia_exp.samplers.iia_edm import averaged
from bdia_exp.samplers.linear import CLD
from bdia_exp.samplers.loops import heun, multistep, pndm
from bdia_exp.samplers.rules import dpmpp, plms
from bdia_exp.samplers.schedules import edm, linear_vp
from bdia_exp.samplers.targets import Fine, Global, Local, fine_end, fine_levels, inserted
from bdia_exp.samplers.weights import Given, gammas
from tests.laws import GRIDS, MIXTURE

pytestmark = pytest.mark.quick

SCHEDULE = linear_vp()
MODEL = MIXTURE.denoiser()
RNG = torch.Generator().manual_seed(5)


def draw(*shape):
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


EVERY = {
    "biia_edm": (partial(averaged, columns=iia_edm.slopes), "coefficients", heun),
    "iia_edm": (partial(averaged, columns=iia_edm.parts), "coefficients", heun),
    "iia_ddim": (partial(multistep, columns=columns.differences), "coefficients", multistep),
    "iia_ipndm": (
        partial(multistep, rule=plms, columns=columns.differences),
        "coefficients",
        partial(multistep, rule=plms),
    ),
    "iia_spndm": (
        partial(pndm, start="heun", order=2, columns=columns.differences),
        "coefficients",
        partial(pndm, start="heun", order=2),
    ),
    "iia_dpmpp": (
        partial(multistep, rule=dpmpp, columns=columns.newest),
        "coefficients",
        partial(multistep, rule=dpmpp),
    ),
    "ab": (partial(multistep, columns=columns.noises), "coefficients", multistep),
    "bdia_ddim": (multistep, "gamma", multistep),
    "bdia_edm": (heun, "gamma", heun),
}
every = pytest.mark.parametrize("name", EVERY)


def noise(grid, count=24):
    generator = torch.Generator().manual_seed(0)
    return MIXTURE.sample(count, grid[0], generator=generator)


@every
def test_coefficients_of_0_are_the_base_method_bit_for_bit(name):
    sampler, key, base = EVERY[name]
    grid = karras(6)
    model, z = MODEL, noise(grid)
    fit = Fit(Global(Fine.solved(model, z, fine_levels(grid, SCHEDULE)).on(grid)))
    *_, _ = sampler(model, z, grid, **{key: fit})
    zeros = Watch([[0.0] * len(row) for row in fit.rows], Global([z] * 6))
    for ours, theirs in zip(
        sampler(model, z, grid, **{key: zeros}), base(model, z, grid), strict=True
    ):
        assert torch.equal(ours, theirs)


@every
@pytest.mark.parametrize("make", GRIDS)
@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
def test_a_fitted_step_is_never_farther_from_its_target(name, make, local):
    sampler, key, _ = EVERY[name]
    grid, model = make(6), MODEL
    z = noise(grid)
    target = Global(Fine.solved(model, z, fine_levels(grid, SCHEDULE)).on(grid))
    if local:
        target = Local(sampler, model, grid, SCHEDULE)
    fit = Fit(target)
    fitted = [*sampler(model, z, grid, **{key: fit})]
    solved = [step for step in fit.steps if step.row]
    assert all(step.after <= step.before * (1 + 1e-12) for step in solved)
    assert any(step.after < 0.97 * step.before for step in solved)
    again = [*sampler(model, z, grid, **{key: Given(fit.rows)})]
    assert all(map(torch.equal, fitted, again))


@every
def test_the_fine_target_brings_other_noises_closer_too(name):
    sampler, key, base = EVERY[name]
    grid, model = karras(6), MODEL
    z = noise(grid, 64)
    fine = Fine.solved(model, z, fine_levels(grid, SCHEDULE)).on(grid)
    fit = Fit(Global([state[:48] for state in fine]))
    *_, _ = sampler(model, z[:48], grid, **{key: fit})
    watch = Watch(fit.rows, Global([state[48:] for state in fine]))
    *_, ours = sampler(model, z[48:], grid, **{key: watch})
    *_, theirs = base(model, z[48:], grid)
    assert rms(ours - fine[-1][48:]) < 0.9 * rms(theirs - fine[-1][48:])
    if name not in ("biia_edm", "iia_edm"):  # whose last step has no columns
        assert watch.steps[-1].after == pytest.approx(rms(ours - fine[-1][48:]), rel=1e-9)


def test_the_end_of_a_fine_solution_needs_no_other_state():
    grid = karras(6)
    z, levels = noise(grid), fine_levels(grid, SCHEDULE)
    whole = Fine.solved(MODEL, z, levels)
    assert torch.equal(whole.end, fine_end(MODEL, z, levels))
    assert torch.equal(whole.at(levels[-1]), whole.end)
    assert len(whole.estimates) == 128


def test_bounds_and_fractions_of_coefficients():
    grid, model = karras(8), MODEL
    z = noise(grid)
    fine = Global(Fine.solved(model, z, fine_levels(grid, SCHEDULE)).on(grid))
    fit = Fit(fine, Bounds((0.5, 1.0), 8))
    *_, _ = multistep(model, z, grid, gamma=fit)
    found = [row[0] for row in fit.rows[1:]]
    assert all(0.5 <= gamma <= 1 and (8 * 7 * 5 * 3 * gamma) % 1 == 0 for gamma in found)
    assert fit.rows[0] == []


def test_rounding_to_a_fraction_stays_within_the_bounds():
    bounds = Bounds((0.1, 2.0), 3)
    assert bounds(0.1) == bounds(0.0) == pytest.approx(1 / 3)  # not 0, which cannot be undone
    assert bounds(0.6) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="contains no fraction with a denominator of at most 3"):
        Bounds((0.1, 0.3), 3)(0.2)


def test_least_squares_of_parallel_columns_is_the_least_norm():
    column = draw(50)
    row, condition = least_squares([column, 3 * column], 6 * column)
    assert row == pytest.approx([3, 1])  # 3 + 3 · 1 = 6; equal after scaling
    assert condition > 1e12
    row, _ = least_squares([column, torch.zeros(50)], column)
    assert row == pytest.approx([1, 0])


def test_least_squares_refuses_what_has_no_answer():
    with pytest.raises(UserError, match="larger fit"):
        least_squares([draw(2), draw(2), draw(2)], draw(2))
    with pytest.raises(UserError, match="diverged"):
        least_squares([draw(5) / 0], draw(5))


def test_a_file_for_another_sampler_is_refused():
    wrong = Given([[], *[[0.1]] * 5])
    sampler = partial(multistep, columns=columns.differences, coefficients=wrong)
    with pytest.raises(UserError, match="fit them again"):
        [*sampler(MODEL, noise(karras(6)), karras(6))]


# -- targets -------------------------------------------------------------------------------------


def test_inserted_levels():
    levels = inserted(edm(2.0), edm(0.5), 3, SCHEDULE)
    roots = [level.sigma ** (1 / 7) for level in levels]
    assert [b - a for a, b in pairwise(roots)] == pytest.approx(
        [(0.5 ** (1 / 7) - 2 ** (1 / 7)) / 3] * 3
    )
    assert [x.sigma for x in inserted(edm(0.3), edm(0.0), 3, SCHEDULE)] == pytest.approx(
        [0.3, 0.2, 0.1, 0]
    )
    s, t = SCHEDULE(700, shift=1), SCHEDULE(400, shift=1)
    inner = inserted(s, t, 4, SCHEDULE)[2]
    assert SCHEDULE.at(inner.rho).time - inner.time == pytest.approx(1)  # shifted as s is
    with pytest.raises(UserError, match="alpha above 0"):
        inserted(edm(1.0)._replace(alpha=0.0), edm(0.5), 3, SCHEDULE)


@pytest.mark.parametrize("make", GRIDS)
def test_fine_states_lie_on_the_exact_trajectory(make):
    gaussian = Gaussian(torch.linspace(-1, 1, 6).reshape(1, 2, 3), 0.7)
    for clean in (False, True):
        grid = make(7, clean=clean)
        z = gaussian.sample(5, grid[0], generator=torch.Generator().manual_seed(1))
        for state, level in zip(
            Fine.solved(gaussian.denoiser(), z, fine_levels(grid, SCHEDULE)).on(grid),
            grid[1:],
            strict=True,
        ):
            assert rms(state - gaussian.flow(z, grid[0], level)) < 2e-4


def test_the_local_target_shares_the_first_evaluation():
    calls = []

    def counting(z, level):
        calls.append(level)
        return MODEL(z, level)

    grid = karras(6)
    target = Local(multistep, counting, grid, SCHEDULE)
    target(5, MODEL(noise(grid), grid[1]))
    assert [level.sigma < grid[1].sigma for level in calls] == [True, True]


@pytest.mark.parametrize("name", ["iia_ddim", "ab", "bdia_ddim"])
def test_a_step_may_keep_the_contrast_of_its_target(name):
    sampler, key, _ = EVERY[name]
    grid = karras(6)
    z = noise(grid, 40)
    fine = Fine.solved(MODEL, z, fine_levels(grid, SCHEDULE)).on(grid)

    def contrast(x):
        return float((x - x.mean((-2, -1), keepdim=True)).square().sum())

    fit = Fit(Global(fine), keep_variance=True)
    states = [*sampler(MODEL, z, grid, **{key: fit})]
    pairs = zip(states, fine, strict=True)
    same = [abs(contrast(state) / contrast(target) - 1) < 1e-9 for state, target in pairs]
    assert sum(same) >= 2, "of six steps; at the others the columns cannot give it"
    free = Fit(Global(fine))
    *_, _ = sampler(MODEL, z, grid, **{key: free})
    first = next(place for place, step in enumerate(free.steps) if step.row)
    assert fit.steps[first].after >= free.steps[first].after * (1 - 1e-12)


def test_matrix_levels_are_refused():
    grid = quadratic_time(4, CLD())
    with pytest.raises(UserError, match="a fit needs levels of numbers"):
        fine_levels(grid, SCHEDULE)
    with pytest.raises(UserError, match="obelm needs levels of numbers"):
        gammas("obelm", grid)
