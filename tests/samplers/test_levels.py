"""Which family a level belongs to, and levels of pure noise, where rectified flow starts."""

import math
from functools import cache, partial

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.models import at_vp_level, starting_noise
from bdia_exp.models.ddpm import DDPM, DDPMUNet
from bdia_exp.models.edm import load as load_edm
from bdia_exp.samplers.core import CLEAN, Estimate, Level, transfer
from bdia_exp.samplers.cost import evaluations
from bdia_exp.samplers.coupling import CBDIA
from bdia_exp.samplers.fixedpoint import quantise, value
from bdia_exp.samplers.grids import arc, karras
from bdia_exp.samplers.inversion import BDIAInversion, CoupledInversion, FixedPointInversion
from bdia_exp.samplers.loops import (
    bdia,
    cbdia,
    edict,
    heun,
    multistep,
    pndm,
)
from bdia_exp.samplers.rules import ddim, deis, dpmpp, leapfrog, plms
from bdia_exp.samplers.schedules import edm as edm_level
from bdia_exp.samplers.schedules import is_edm, is_vp, linear_vp, rectified
from bdia_exp.samplers.starts import halfway
from bdia_exp.seeds import Generators
from tests.laws import GAUSSIAN, MIXTURE, end, states, vp_arc

SCHEDULE = linear_vp()
NOISE, MIDDLE = rectified(1.0), rectified(0.5)
OTHER = Level(1.0, 3.0, 500.0)  # α = 1, but its time is not σ


def line(steps):
    """Rectified levels, evenly spaced from pure noise to the clean level."""
    return tuple(rectified(1 - i / steps) for i in range(steps + 1))


def flow(data):
    """The ideal network of rectified flow: it predicts u = ε − x."""
    ideal = data.denoiser()

    def denoise(z, level):
        split = ideal(z, level)
        return Estimate.from_flow(level, z, split.eps - split.x)

    return denoise


def noise(count=8):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 2, 3, dtype=torch.float64, generator=rng)


# --- Families ---


@pytest.mark.parametrize(
    ("levels", "vp", "edm"),
    [
        ([SCHEDULE(k) for k in range(1000)], True, False),
        ([SCHEDULE.between(k + 0.3) for k in range(0, 999, 9)], True, False),
        ([SCHEDULE.at(2.0**k) for k in range(-6, 7)], True, False),
        ([*vp_arc(50), *arc(50, SCHEDULE)], True, False),
        (karras(50)[:-1], False, True),
        ([CLEAN, edm_level(0.0), rectified(0.0)], True, True),
        ([rectified(t) for t in (0.001, 0.3, 0.5, 0.999)], False, False),
        ([NOISE], True, False),
        ([OTHER], False, False),
    ],
)
def test_a_level_s_family_is_what_its_numbers_are(levels, vp, edm):
    assert {is_vp(level) for level in levels} == {vp}
    assert {is_edm(level) for level in levels} == {edm}


def test_a_rectified_level_is_found_by_its_time_and_by_its_sigma_over_alpha():
    for t in (0.0, 0.25, 0.5, 0.9):
        assert rectified(t) == (1 - t, t, t)
        assert rectified.at(rectified(t).rho) == pytest.approx(rectified(t))
    assert rectified.at(math.inf) == NOISE == (0.0, 1.0, 1.0)
    assert NOISE.rho == rectified.rho_max == math.inf
    assert SCHEDULE.rho_max == SCHEDULE(999).rho
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="times from 0 to 1"):
            rectified(t)


def test_starting_noise_has_the_scale_of_its_family():
    drawn = Generators(range(4)).randn((1, 8, 8)).double()
    for level, scale in (
        (edm_level(80.0), 80.0),
        (CLEAN, 0.0),
        (NOISE, 1.0),
        (MIDDLE, math.hypot(0.5, 0.5)),
        (OTHER, math.hypot(1.0, 3.0)),
    ):
        assert torch.equal(starting_noise(Generators(range(4)), (1, 8, 8), level), drawn * scale)
    at_vp = starting_noise(Generators(range(4)), (1, 8, 8), SCHEDULE(700))
    torch.testing.assert_close(at_vp, drawn, rtol=1e-12, atol=0)


# --- Any scalar level on any network ---


@cache
def vp_network() -> DDPM:
    torch.manual_seed(0)
    options = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
    net = DDPMUNet(**options, image_size=8, in_channels=3, out_ch=3).eval().requires_grad_(False)
    return DDPM(net, SCHEDULE, {})


@cache
def edm_network():
    return load_edm("bundled:fashion_mini.safetensors")


@pytest.mark.parametrize("t", [0.01, 0.5, 0.9])
def test_a_vp_network_is_asked_about_a_rectified_level_by_its_sigma_over_alpha(t):
    level = rectified(t)
    known = at_vp_level(level, SCHEDULE)
    assert known == SCHEDULE.at(t / (1 - t))
    assert is_vp(known)
    z = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    denoise = vp_network().denoiser(None)
    found, wanted = denoise(z, level), denoise(z * (known.alpha / level.alpha), known)
    torch.testing.assert_close(found.eps, wanted.eps, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=1e-4)
    same_state = denoise(z, known)
    assert (found.eps - same_state.eps).abs().max() > 1e-3, "the input has to be rescaled"


@pytest.mark.parametrize("t", [0.01, 0.5, 0.9])
def test_an_edm_network_is_asked_about_a_rectified_level_by_its_sigma_over_alpha(t):
    level, labels = rectified(t), torch.tensor([1, 5])
    z = torch.randn(2, *edm_network().shape, dtype=torch.float64)
    denoise = edm_network().denoiser(labels)
    found, wanted = denoise(z, level), denoise(z / level.alpha, edm_level(t / (1 - t)))
    assert torch.equal(found.eps, wanted.eps)
    torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [0.01, 0.5, 0.9])
def test_an_exact_density_says_the_same_on_levels_of_one_sigma_over_alpha(t):
    level, known = rectified(t), SCHEDULE.at(t / (1 - t))
    z, network = states(MIXTURE, level), MIXTURE.denoiser()
    found, wanted = network(z, level), network(z * (known.alpha / level.alpha), known)
    torch.testing.assert_close(found.eps, wanted.eps, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("network", "told"), [(vp_network, "sigma=157.4"), (edm_network, "noise")])
def test_networks_that_do_not_know_pure_noise_refuse_it(network, told):
    model = network()
    with pytest.raises(UserError, match=told):
        model.denoiser(None)(torch.zeros(1, *model.shape, dtype=torch.float64), NOISE)


def test_what_only_edm_and_vp_levels_can_have_is_refused_on_others():
    for s, t in ((rectified(0.6), MIDDLE), (NOISE, MIDDLE), (NOISE, vp_arc(3)[1]), (OTHER, CLEAN)):
        with pytest.raises(UserError, match=r"VP model or of EDM.*sampler=ipndm"):
            halfway(s, t)
    for level in (MIDDLE, OTHER):
        with pytest.raises(UserError, match="grid=karras"):
            end(partial(heun, S_churn=1.0), MIXTURE.denoiser(), noise(), (level, CLEAN))


# --- The split at pure noise ---


def test_an_estimate_from_the_velocity_is_the_split():
    x, eps = noise(), noise(16)[8:]
    for t in (0.0, 0.3, 1.0):
        level = rectified(t)
        z = level.alpha * x + level.sigma * eps
        estimate = Estimate.from_flow(level, z, eps - x)
        torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-15)
        torch.testing.assert_close(estimate.x, x, rtol=0, atol=1e-14)
        for to in (rectified(0.8), MIDDLE, NOISE, CLEAN, edm_level(2.0)):
            there = to.alpha * x + to.sigma * eps
            torch.testing.assert_close(estimate.at(to), there, rtol=0, atol=1e-14)


def test_at_pure_noise_every_prediction_gives_the_split():
    x, eps = noise(), noise(16)[8:]
    for estimate in (
        Estimate.from_x(NOISE, eps, x),
        Estimate.from_v(NOISE, eps, -x),  # v = α ε − σ x
        Estimate.from_flow(NOISE, eps, eps - x),
    ):
        assert torch.equal(estimate.eps, eps)
        torch.testing.assert_close(estimate.x, x, rtol=0, atol=1e-15)
        torch.testing.assert_close(estimate.at(MIDDLE), (x + eps) / 2, rtol=0, atol=1e-15)
        assert torch.equal(estimate.at(NOISE), eps)


def test_with_signal_the_line_is_transfer_to_the_last_bit():
    z, other = noise(), noise(16)[8:]
    for level in (MIDDLE, SCHEDULE(500), edm_level(2.0)):
        for make in (Estimate.from_x, Estimate.from_v, Estimate.from_flow):
            found = make(level, z, other)
            for to in (CLEAN, NOISE, SCHEDULE(480)):
                assert torch.equal(found.at(to), transfer(z, found.eps, level, to))


def test_an_exact_density_estimates_its_mean_from_pure_noise():
    z = noise()
    found = MIXTURE.denoiser()(z, NOISE)
    torch.testing.assert_close(found.eps, z, rtol=0, atol=1e-14)
    mean = states(MIXTURE, CLEAN, 100_000).mean(0)
    assert (found.x - mean).abs().max() < 0.02
    near = MIXTURE.denoiser()(z, rectified(1 - 1e-6))
    torch.testing.assert_close(found.x, near.x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [heun, edict, partial(pndm, start="heun"), partial(multistep, rule=leapfrog)],
)
def test_a_sampler_that_needs_signal_refuses_pure_noise(sampler):
    with pytest.raises(UserError, match=r"pure noise \(alpha = 0\).*choose sampler=ddim"):
        end(sampler, flow(GAUSSIAN), noise(), line(4))


def test_an_estimate_without_a_clean_image_refuses_pure_noise():
    with pytest.raises(UserError, match="pure noise"):
        Estimate(NOISE, noise(), noise()).at(MIDDLE)


# --- Rectified flow from pure noise to data, and back ---

FROM_NOISE = [
    (multistep, 1),
    (partial(multistep, gamma=0.5), 1),
    (partial(multistep, gamma=1.0), 2),
    (partial(multistep, rule=dpmpp), 2),
    (partial(multistep, rule=partial(plms, order=2)), 2),
    (partial(multistep, rule=partial(deis, order=2)), 2),
    (partial(multistep, rule=partial(deis, order=2, clock="rho")), 2),
    (partial(bdia, gamma1=0.5, gamma2=0.5), 2),
    (partial(cbdia, gamma1=0.0, gamma2=1.0), 2),
    (partial(cbdia, gamma1=0.04, gamma2=0.96), 2),
]


def name_of(value):
    if isinstance(value, partial):
        options = [f"{key}={name_of(option)}" for key, option in value.keywords.items()]
        return f"{value.func.__name__}({', '.join(options)})"
    return getattr(value, "__name__", None) or str(value)


@pytest.mark.parametrize(("sampler", "order"), FROM_NOISE, ids=name_of)
def test_samplers_keep_their_order_from_pure_noise(sampler, order):
    """Against the exact flow of a Gaussian from t = 1."""
    z = noise()
    exact = GAUSSIAN.flow(z, NOISE, CLEAN)
    errors = [(end(sampler, flow(GAUSSIAN), z, line(n)) - exact).abs().max() for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert evaluations(sampler, line(5)) == evaluations(sampler, vp_arc(5))


def test_rectified_flow_lands_on_the_data():
    x = end(partial(multistep, gamma=1.0), flow(MIXTURE), noise(2000), line(60)).flatten(1)
    data = states(MIXTURE, CLEAN, 20_000).flatten(1)
    assert (x.mean(0) - data.mean(0)).abs().max() < 0.15
    assert (x.std(0) / data.std(0) - 1).abs().max() < 0.1


def test_rf_1_ddim_is_eulers_step_and_bdia_at_gamma_one_the_midpoint_rule():
    """dz/dt = u(z, t): z + (t' − t) u, and z_past + (t' − t_past) u, also from t = 1."""
    times = [1.0, 0.9, 0.6, 0.55, 0.2, 0.0]
    levels = [rectified(t) for t in times]
    network = MIXTURE.denoiser()

    def velocity(z, level):
        split = network(z, level)
        return split.eps - split.x

    z = [noise()]
    for i, level in enumerate(levels[:-1]):
        start = max(i - 1, 0)
        z.append(z[start] + (times[i + 1] - times[start]) * velocity(z[i], level))
    found = list(multistep(flow(MIXTURE), z[0], levels, gamma=1.0))
    torch.testing.assert_close(torch.stack(found), torch.stack(z[1:]), rtol=0, atol=1e-12)
    euler = z[0] + (times[1] - times[0]) * velocity(z[0], levels[0])
    torch.testing.assert_close(next(multistep(flow(MIXTURE), z[0], levels)), euler)


@pytest.mark.parametrize("inversion", [BDIAInversion(1.0), CoupledInversion(CBDIA(0.0, 1.0))])
def test_the_way_to_pure_noise_and_back_is_exact(inversion):
    x, grid, network = states(MIXTURE, CLEAN), line(12), flow(MIXTURE)
    *_, kept = inversion.encode(network, x, grid)
    *_, back = inversion.decode(network, kept, grid)
    assert (kept["z"] - x).abs().max() > 0.1
    torch.testing.assert_close(back["z"], x, rtol=0, atol=1e-12)


def test_the_way_from_pure_noise_and_back_is_exact():
    z, grid, network = noise(), line(12), flow(MIXTURE)
    *_, past, last = multistep(network, z, grid, gamma=0.8)
    *_, back = multistep(
        network, past, grid[:-1][::-1], gamma=1 / 0.8, trail=[Estimate(grid[-1], last, last)]
    )
    torch.testing.assert_close(back, z, rtol=0, atol=1e-12)


def test_every_bit_returns_from_pure_noise():
    x, grid, network = states(MIXTURE, CLEAN), line(12), flow(MIXTURE)
    inversion = FixedPointInversion(0.9)
    *_, kept = inversion.encode(network, x, grid)
    *_, back = inversion.decode(network, kept, grid)
    assert torch.equal(back["z"], value(quantise(x)))


def test_rules_see_pure_noise_as_their_first_step_only():
    """A polynomial in σ/α has no node at ∞: there every rule is DDIM."""
    z, network = noise(), flow(MIXTURE)
    first = network(z, NOISE)
    clocks = [partial(deis, clock=clock) for clock in ("rho", "log_rho", "vp_time")]
    for rule in (ddim, plms, dpmpp, *clocks):
        assert torch.equal(rule([first], MIDDLE), first.at(MIDDLE))
    second = network(first.at(MIDDLE), MIDDLE)
    for rule in (dpmpp, *clocks):
        found, alone = rule([first, second], rectified(0.3)), second.at(rectified(0.3))
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-13)


def test_a_schedule_needs_no_table():
    """`arc` asks a schedule for nothing but its levels by σ/α."""
    grid = arc(4, rectified, sigma_min=0.1, sigma_max=20.0)
    for level in grid:
        assert level.time == pytest.approx(level.rho / (1 + level.rho))
