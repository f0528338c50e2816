"""Laws of the samplers on the levels of linear diffusions: order, cost, inversion, moments."""

import math
from functools import partial

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.models.langevin import paired
from bdia_exp.samplers.baselines import em, rk45, sscs
from bdia_exp.samplers.core import CLEAN, Counted, Estimate
from bdia_exp.samplers.cost import evaluations, grid_for
from bdia_exp.samplers.diagonal import Blur
from bdia_exp.samplers.fixedpoint import quantise, value
from bdia_exp.samplers.gddim import predict_correct, predictor, stochastic
from bdia_exp.samplers.grids import karras, quadratic_time
from bdia_exp.samplers.inversion import BDIAInversion, DDIMInversion, FixedPointInversion
from bdia_exp.samplers.loops import bdia, heun, multistep, pndm, rex
from bdia_exp.samplers.rules import deis, dpmpp
from bdia_exp.samplers.schedules import edm
from tests.laws import LINEAR, LINEAR_OTHERS, end
from tests.samplers.pairs import DIFFUSION, GAUSSIAN, MIXTURE, NETWORK, error, start

pytestmark = pytest.mark.quick

GRID = quadratic_time(8, DIFFUSION)
ROUND_TRIP = quadratic_time(20, DIFFUSION)


@pytest.mark.parametrize("entry", LINEAR, ids=str)
def test_order_of_convergence(entry):
    """From 160 to 320 steps; below 40 nothing is in its limit, for R turns by 12.5 rad."""
    order = math.log2(error(entry.sampler, 160) / error(entry.sampler, 320))
    assert entry.order - 0.2 < order < entry.order + 0.5


@pytest.mark.parametrize("entry", [*LINEAR, *LINEAR_OTHERS], ids=str)
def test_cost_is_counted_and_is_what_is_declared(entry):
    for steps in (1, 2, 5):
        clean = quadratic_time(steps, DIFFUSION)
        noisy = quadratic_time(steps, DIFFUSION, final="first")
        assert evaluations(entry.sampler, clean) == entry.nfe_to_clean(steps)
        assert evaluations(entry.sampler, noisy) == entry.nfe_to_noisy(steps)
        if entry.name != "cld_rk45":
            model = Counted(NETWORK)
            assert len(list(entry.sampler(model, start(), clean))) == steps
            assert model.nfe == entry.nfe_to_clean(steps)
    make = partial(quadratic_time, schedule=DIFFUSION)
    assert grid_for(entry.sampler, make, entry.nfe_to_clean(4)) == make(4)


def test_runge_kutta_counts_what_it_spends_and_rejects_bad_steps():
    spent = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        model = Counted(NETWORK)
        end(partial(rk45, rtol=tolerance, atol=tolerance), model, start(), GRID[:1] + GRID[-2:])
        spent.append(model.nfe)
    assert all(nfe % 6 == 1 for nfe in spent)
    assert 7 < spent[0] < spent[1] < spent[2]


@pytest.mark.parametrize("entry", [*LINEAR, *LINEAR_OTHERS[:3]], ids=str)
def test_an_image_does_not_depend_on_its_batch(entry):
    u = start()
    given = {} if entry in LINEAR else {"noise": torch.ones_like}
    together = end(partial(entry.sampler, **given), NETWORK, u, GRID)
    alone = [end(partial(entry.sampler, **given), NETWORK, row[None], GRID) for row in u]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


# --- BDIA ---


@pytest.mark.parametrize(
    ("inversion", "atol"),
    [(BDIAInversion(1.0), 1e-12), (BDIAInversion(0.9), 1e-11), (BDIAInversion(0.5), 1e-7)],
    ids=["1", "0.9", "0.5"],
)
def test_the_way_to_noise_and_back_keeps_the_velocity_and_is_exact(inversion, atol):
    """1/γ^N enlarges rounding errors, as on every level."""
    x = MIXTURE.sample(6, generator=torch.Generator().manual_seed(0))
    data = torch.stack([x, 0 * x], 1)
    *_, kept = inversion.encode(NETWORK, data, ROUND_TRIP)
    assert kept["z"].shape == kept["past"].shape == data.shape
    *_, back = inversion.decode(NETWORK, kept, ROUND_TRIP)
    torch.testing.assert_close(back["z"], data, rtol=0, atol=atol)
    assert kept["z"][:, 1].abs().max() > 0.05


def test_without_bdia_the_way_back_misses():
    x = MIXTURE.sample(6, generator=torch.Generator().manual_seed(0))
    data = torch.stack([x, 0 * x], 1)
    *_, kept = DDIMInversion("own").encode(NETWORK, data, ROUND_TRIP)
    *_, back = DDIMInversion("own").decode(NETWORK, kept, ROUND_TRIP)
    assert (back["z"] - data).abs().max() > 0.02


def test_every_bit_of_x_and_v_returns_in_fixed_point():
    data = torch.stack([torch.linspace(-1, 1, 6).double()[:, None]] * 2, 1) / 2
    inversion = FixedPointInversion(0.9)
    *_, kept = inversion.encode(NETWORK, data, ROUND_TRIP)
    *_, back = inversion.decode(NETWORK, kept, ROUND_TRIP)
    assert torch.equal(back["z"], value(quantise(data)))


# --- Stochastic ---


def drawn(sampler, network, u, grid, seed=5):
    rng = torch.Generator().manual_seed(seed)

    def noise(z):
        return torch.randn(z.shape, dtype=z.dtype, generator=rng)

    return end(partial(sampler, noise=noise), network, u, grid)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_moments_of_gaussian_data(lam):
    """x ~ N(0.7, 0.4²), from draws at t = 1: the end has mean 0.7 and the deviation 0.4."""
    u = start(10_000)
    x = drawn(partial(stochastic, lam=lam), GAUSSIAN, u, quadratic_time(200, DIFFUSION))[:, 0]
    assert x.mean() == pytest.approx(0.7, abs=0.02)
    assert x.std() == pytest.approx(0.4, rel=0.05)


def test_moments_of_the_mixture_and_of_the_baselines():
    """E x² is 0.4525: gDDIM approaches it from below, Euler without noise diverges at 20 steps."""
    u, truth = start(20_000), 0.4525
    found = {
        name: drawn(sampler, NETWORK, u, quadratic_time(20, DIFFUSION)).square()[:, 0].mean()
        for name, sampler in (
            ("gddim", partial(stochastic, lam=0.0)),
            ("gddim 1", partial(stochastic, lam=1.0)),
            ("em", partial(em, lam=1.0)),
            ("em 0", partial(em, lam=0.0)),
            ("sscs", sscs),
        )
    }
    assert truth - 0.12 < found["gddim"] < found["gddim 1"] < truth
    assert found["em"] == pytest.approx(truth, abs=0.05)
    assert found["sscs"] == pytest.approx(truth, abs=0.05)
    assert found["em 0"] > 2


# --- A number a frequency ---


def test_samplers_run_on_the_frequencies_of_blurred_images():
    """Data N(0, ¼) in every frequency, whose flow is known; each method has its order."""
    diffusion = Blur(4, 4, blur=1.0)

    def variance(level):
        return level.alpha**2 / 4 + level.sigma**2

    def network(z, level):
        return Estimate(level, z, level.sigma * z / variance(level))

    def wrong(sampler, steps):
        grid = tuple(diffusion.level(0.9 - 0.8 * i / steps) for i in range(steps + 1))
        exact = (variance(grid[-1]) / variance(grid[0])).sqrt() * z
        return (end(sampler, network, z, grid) - exact).abs().max().item()

    rng = torch.Generator().manual_seed(0)
    z = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=rng)
    for sampler, order in (
        (multistep, 1),
        (partial(multistep, gamma=0.5), 1),
        (partial(multistep, gamma=1.0), 2),
        (partial(multistep, rule=partial(predictor, order=2)), 2),
        (partial(stochastic, lam=0.0), 1),
        (partial(predict_correct, order=1), 1),
        (partial(predict_correct, order=2), 2),
        (partial(predict_correct, order=2, points=1), 1),
    ):
        assert math.log2(wrong(sampler, 64) / wrong(sampler, 128)) == pytest.approx(order, abs=0.2)


# --- Bad input ---

REFUSED = [
    (partial(multistep, rule=deis), "one sigma"),
    (partial(multistep, rule=dpmpp), "one sigma"),
    (partial(bdia, gamma1=0.5, gamma2=0.5), "one sigma"),
    (pndm, "sampler=ipndm"),
    (rex, "one sigma"),
    (partial(rex, predicts="data", sde="em"), "one sigma"),
    (partial(heun, S_churn=1.0), "grid=karras"),
    (partial(multistep, rule=partial(predictor, order=0)), "sampler.rule.order=0"),
    (partial(multistep, rule=partial(predictor, order=5)), "sampler.rule.order=5"),
    (partial(multistep, rule=partial(predictor, K="M")), "sampler.rule.K='M'"),
    (partial(predict_correct, order=5), "sampler.order=5"),
    (partial(predict_correct, points=6), "sampler.points=6"),
    (partial(predict_correct, K="l"), "sampler.K='l'"),
    (partial(stochastic, lam=-0.1), "sampler.lam=-0.1"),
    (partial(em, lam=-0.1), "sampler.lam=-0.1"),
    (partial(em, lam=math.nan), "sampler.lam=nan"),
    (partial(em, lam=1e155), "at most 2"),
    (partial(stochastic, lam=2.1), "at most 2"),
    (partial(rk45, rtol=0.0), "sampler.rtol=0.0"),
]


@pytest.mark.parametrize(("sampler", "told"), REFUSED)
def test_what_does_not_fit_gets_a_sentence(sampler, told):
    with pytest.raises(UserError, match=told):
        end(sampler, NETWORK, start(), GRID)
    with pytest.raises(UserError, match=told):
        evaluations(sampler, GRID)


@pytest.mark.parametrize(
    "sampler", [partial(multistep, rule=predictor), predict_correct, stochastic, em, sscs, rk45]
)
def test_levels_without_a_diffusion_are_refused(sampler):
    with pytest.raises(UserError, match="diffusion=cld"):
        end(sampler, MIXTURE.denoiser(), start()[:, 0], karras(4))


def test_a_network_of_pairs_refuses_levels_of_numbers():
    with pytest.raises(UserError, match="grid=quadratic_time"):
        NETWORK(start(), edm(1.0))
    at_clean = NETWORK(start(), CLEAN)
    assert at_clean.eps.isfinite().all()


def test_sscs_is_for_langevin_diffusion_only():
    diffusion = Blur(4, 4)
    grid = diffusion.level(0.8), diffusion.level(0.5)
    with pytest.raises(UserError, match="diffusion=cld"):
        next(sscs(MIXTURE.denoiser(), torch.zeros(1, 1, 4, 4), grid))


def test_beyond_the_network_s_range_the_state_is_scaled():
    """D(80 y/σ_eff; 80) where σ_eff is above 80, and D(y; σ_min) where it is below σ_min."""
    asked = []

    def own(y, level):
        asked.append((level.sigma, y.abs().max().item()))
        return MIXTURE.denoiser()(y, level)

    network, u = paired(own, DIFFUSION, 0.002, 80.0), start()
    for t in (1.0, 0.3, 1e-3):
        network(u, DIFFUSION.level(t))
    assert [sigma for sigma, _ in asked] == [80.0, DIFFUSION.sigma_eff(0.3), 0.002]
    (w_x, w_v), sigma = DIFFUSION.observation(1.0)
    y = (w_x * u[:, 0] + w_v * u[:, 1]).abs().max().item()
    assert asked[0][1] == pytest.approx(y * 80 / sigma)
