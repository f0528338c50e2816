"""Rex for the reverse-time SDE: its equation, its noise, its orders, and its exact inversion."""

import math
from functools import partial

import pytest
import torch

from bdia_exp.samplers.inversion import of
from bdia_exp.samplers.loops import rex
from bdia_exp.samplers.rex import SDE, Rex, increments, psi
from bdia_exp.samplers.schedules import vp
from bdia_exp.samplers.tableaus import STOCHASTIC
from tests.laws import GAUSSIAN, GRIDS, MIXTURE, end, states, vp_arc

pytestmark = pytest.mark.quick

MODEL = MIXTURE.denoiser()
every_scheme = pytest.mark.parametrize("sde", STOCHASTIC)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)


# --- The equation: the same marginals, at every level ---


@every_scheme
@every_grid
def test_rex_sde_has_the_moments_of_the_data(grid, sde):
    for levels in (grid(80)[:40], grid(80, clean=True)):
        z = states(GAUSSIAN, levels[0], 700)
        x = end(partial(rex, predicts="data", sde=sde), GAUSSIAN.denoiser(), z, levels)
        level, mean = levels[-1], GAUSSIAN.mean
        std = math.hypot(level.alpha * 0.7, level.sigma)
        standard = (x - level.alpha * mean) / std
        assert abs(float(standard.mean())) < 0.06
        assert float(standard.square().mean()) == pytest.approx(1, abs=0.08)


@every_grid
def test_rex_sde_with_euler_maruyama_is_ddpm_s_step(grid):
    """In z/α = u: mean x̂ + (ρ_t²/ρ_s²)(u − x̂), variance ρ_t² (ρ_s² − ρ_t²)/ρ_s²."""
    s, t = grid(6)[2:4]
    z = states(MIXTURE, s)
    length = SDE.clock(t.rho) - SDE.clock(s.rho)
    w, area = increments(range(len(z)), 2, length, z)
    step = psi(MODEL, z, s, t, SDE, STOCHASTIC["em"], (w, area))
    found = SDE.weight(t) * (z / SDE.weight(s) + step)
    x = MODEL(z, s).x
    mean = x + (t.rho / s.rho) ** 2 * (z / s.alpha - x)
    noise = t.rho * math.sqrt(s.rho**2 - t.rho**2) / s.rho * (w / math.sqrt(length))
    torch.testing.assert_close(found, t.alpha * (mean + noise), rtol=0, atol=1e-12)


# --- The noise ---


def test_increments_have_their_variances_and_are_uncorrelated():
    w, h = increments(range(4000), 3, -0.25, torch.zeros(4000, 20, dtype=torch.float64))
    assert float(w.var()) == pytest.approx(0.25, rel=0.02)
    assert float(h.var()) == pytest.approx(0.25 / 12, rel=0.02)
    assert abs(float((w * h).mean())) < 0.01 * 0.25 / 12**0.5


def test_increments_depend_on_the_seed_and_the_place_and_not_on_the_batch():
    like = torch.zeros(3, 2, dtype=torch.float64)
    w, h = increments((5, 6, 7), 1, 1.0, like)
    again, area = increments((6,), 1, 1.0, like[:1])
    assert torch.equal(w[1:2], again)
    assert torch.equal(h[1:2], area)
    assert not torch.equal(w[0], w[1])
    assert not torch.equal(increments((5, 6, 7), 2, 1.0, like)[0], w)


def test_an_image_of_a_seed_is_the_same_in_every_batch():
    levels = vp_arc(6, clean=True)
    z = states(MIXTURE, levels[0], 4)
    whole = end(partial(rex, predicts="data", sde="em", seeds=(4, 9, 2, 7)), MODEL, z, levels)
    part = end(partial(rex, predicts="data", sde="em", seeds=(2, 7)), MODEL, z[2:], levels)
    assert torch.equal(whole[2:], part)
    other = end(partial(rex, predicts="data", sde="em", seeds=(2, 8)), MODEL, z[2:], levels)
    assert torch.equal(other[0], part[0])
    assert (other[1] - part[1]).abs().max() > 1e-2


# --- Strong order ---


def halved(path):
    """The W and H of pairs of steps, from those of every step."""
    return [
        (w1 + w2, (h1 + h2) / 2 + (w1 - w2) / 4)
        for (w1, h1), (w2, h2) in zip(path[::2], path[1::2], strict=True)
    ]


ENDS = 0.05, 1.0
"""The clock α²/σ² at the two ends; steps are even in it."""


def solution(path, tableau):
    """The end of the SDE on a path of steps that are even in the clock."""
    steps = len(path)
    clocks = [ENDS[0] + i / steps * (ENDS[1] - ENDS[0]) for i in range(steps + 1)]
    levels = [vp(SDE.rho(clock), 0.0) for clock in clocks]
    z = states(MIXTURE, levels[0], 100)
    for s, t, noise in zip(levels[:-1], levels[1:], path, strict=True):
        change = psi(MODEL, z, s, t, SDE, tableau, noise)
        z = SDE.weight(t) * (z / SDE.weight(s) + change)
    return z


def test_strong_orders_on_additive_noise():
    """Euler-Maruyama's is 1, ShARK's at least 1.5 (2 on Gaussian data); without the area it is 1.

    The same path is solved with steps of several lengths.
    """
    fine, like = 512, torch.zeros(100, 1, 2, 3, dtype=torch.float64)
    length = (ENDS[1] - ENDS[0]) / fine
    path = [increments(range(100), place, length, like) for place in range(fine)]
    tableaus = {**STOCHASTIC, "without": STOCHASTIC["shark"]._replace(area=0.0)}
    exact = solution(path, tableaus["shark"])
    errors = {name: {} for name in tableaus}
    while len(path) > 16:
        path = halved(path)
        for name, tableau in tableaus.items():
            error = solution(path, tableau) - exact
            errors[name][len(path)] = float(error.square().mean().sqrt())
    order = {name: math.log2(found[16] / found[128]) / 3 for name, found in errors.items()}
    assert order["em"] == pytest.approx(1, abs=0.2)
    assert order["without"] == pytest.approx(1, abs=0.2)
    assert order["shark"] > 1.4


# --- Exact inversion of stochastic sampling ---


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@every_scheme
@every_grid
def test_stochastic_sampling_is_inverted(grid, sde, clean):
    """Undone from the clean end, rounding errors of the pair's difference grow like (ρ_N/ρ_1)⁴."""
    levels, seeds = grid(12, clean=clean), torch.tensor([3, 1, 4, 15])
    inversion = of(partial(rex, predicts="data", sde=sde))
    z = states(MIXTURE, levels[0], 4)
    *_, kept = inversion.decode(MODEL, {"z": z, "y": z, "seeds": seeds}, levels)
    sampled = end(partial(rex, predicts="data", sde=sde, seeds=(3, 1, 4, 15)), MODEL, z, levels)
    assert torch.equal(kept["z"], sampled)
    *_, back = inversion.encode(MODEL, kept, levels)
    bound = 1e-9 if grid is vp_arc else 1e-6
    assert max(float((back[key] - z).abs().max()) for key in ("z", "y")) < bound
    *_, other = inversion.encode(MODEL, {**kept, "seeds": seeds + 1}, levels)
    assert (other["z"] - z).abs().max() > 1e-2, "another path is another trajectory"


@every_scheme
@every_grid
def test_a_clean_state_is_inverted_and_comes_back(grid, sde):
    levels, inversion = grid(20, clean=True), of(partial(rex, predicts="data", sde=sde))
    x = states(MIXTURE, levels[-1], 4)
    *_, kept = inversion.encode(MODEL, x, levels)
    assert kept["seeds"].tolist() == [0, 1, 2, 3]
    *_, back = inversion.decode(MODEL, kept, levels)
    assert (back["z"] - x).abs().max() < 1e-9


def test_a_coupling_without_noise_keeps_no_seeds():
    levels = vp_arc(3)
    kept = next(of(partial(rex)).encode(MODEL, states(MIXTURE, levels[-1], 2), levels))
    assert set(kept) == {"z", "y"}
    assert Rex().sde is None
