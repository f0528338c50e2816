"""PNDM's networks against the original ones (tests/golden/README.md), and as models."""

import ast
import json
import math

import numpy as np
import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.models import at_vp_level, parameter_count
from bdia_exp.models.ddpm import DDPM, DDPMUNet
from bdia_exp.samplers.core import CLEAN, Estimate, Level
from bdia_exp.samplers.grids import karras, quad, uniform
from bdia_exp.samplers.loops import heun, multistep
from bdia_exp.samplers.schedules import DiscreteVP
from bdia_exp.samplers.schedules import edm as edm_level
from bdia_exp.seeds import Generators
from tests.laws import end
from tests.models.test_edm_network import GOLDEN
from tests.models.tiny_ddpm import SCHEDULE, TINY, network, published

# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("ddim_cifar10", 35_746_307), ("ddim_celeba", 78_700_803)]
)
def test_names_shapes_and_sizes_are_the_published_ones(name, count):
    with torch.device("meta"):
        net = DDPMUNet(**published(name))
    expected = {}
    for line in (GOLDEN / f"pndm_{name}.txt").read_text().splitlines():
        key, shape = line.split(maxsplit=1)
        expected[key] = ast.literal_eval(shape)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == expected
    assert parameter_count(net) == count


@pytest.fixture(scope="module", params=["tiny", "cifar10"])
def golden(request):
    figures = np.load(GOLDEN / f"pndm_{request.param}.npz")
    net = network(json.loads(str(figures["config"])))
    return net, {key: torch.from_numpy(figures[key]) for key in figures if key != "config"}


def test_outputs_are_the_original_s(golden):
    net, figures = golden
    assert parameter_count(net) == figures["params"]
    eps = net(figures["x"], figures["t"])
    assert eps.dtype == torch.float32
    torch.testing.assert_close(eps, figures["eps"], rtol=0, atol=1e-5)


def test_five_ddim_steps_are_the_original_s(golden):
    net, figures = golden

    def model(z, level):
        return Estimate(level, z, net(z, level.time).double())

    x = end(multistep, model, figures["x"].double(), uniform(5, SCHEDULE, pairing="pndm"))
    torch.testing.assert_close(x.float(), figures["ddim_uniform5"], rtol=0, atol=1e-4)


def test_the_published_description_is_that_of_the_original(golden):
    net, _ = golden
    if net.image_size == 32:
        figures = np.load(GOLDEN / "pndm_cifar10.npz")
        assert published("ddim_cifar10") == json.loads(str(figures["config"]))


def test_a_time_may_be_a_number_for_all_rows_and_a_fraction():
    net, x = network(TINY), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x, 37), net(x, torch.tensor([37.0, 37.0])))
    low, half, high = (net(x, t) for t in (700.0, 700.5, 701.0))
    assert 0.3 < (half - low).norm() / (high - low).norm() < 0.7


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"type": "bayesian"}, "only type=simple"),
        ({"resamp_with_conv": False}, "only type=simple"),
        ({"out_ch": 6}, "out_ch=6 must equal in_channels=3"),
        ({"ch": 48}, "multiple of 32"),
        ({"image_size": 9}, "cannot be halved 1 times"),
        ({"ch_mult": []}, "must be positive"),
        ({"num_res_blocks": 0}, "must be positive"),
        ({"ch": -32}, "must be positive"),
    ],
)
def test_options_that_cannot_be_are_refused(option, said):
    with pytest.raises(ValueError, match=said):
        DDPMUNet(**{**TINY, **option})


# --- the network as a model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return DDPM(network(TINY), SCHEDULE, {})


class Asked:
    """A network that keeps what it was asked."""

    def __init__(self):
        self.x, self.times = [], []

    def __call__(self, x, t):
        self.x.append(x)
        self.times.append(t)
        return torch.zeros_like(x, dtype=torch.float32)


@pytest.fixture
def asked(model, monkeypatch):
    seen = Asked()
    monkeypatch.setattr(model.net, "forward", seen)
    return seen


def test_what_the_model_says_of_itself(model):
    assert (model.shape, model.num_classes, len(model.schedule)) == ((3, 8, 8), 0, 1000)


@pytest.mark.parametrize("k", [0, 1, 37, 801, 999])
def test_an_edm_level_is_served_in_vp_coordinates(model, k):
    """At σ = σ_k/α_k the estimate is that of time k, whichever coordinates the state has."""
    level = SCHEDULE(k)
    z = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    denoise = model.denoiser(None)
    vp = denoise(z, level)
    ve = denoise(z / level.alpha, edm_level(level.sigma / level.alpha))
    assert vp.eps.dtype == ve.eps.dtype == torch.float64
    torch.testing.assert_close(ve.eps, vp.eps, rtol=0, atol=1e-5)
    torch.testing.assert_close(ve.x, vp.x, rtol=0, atol=1e-5 / level.alpha)
    torch.testing.assert_close(vp.eps.float(), model.net(z, k), rtol=0, atol=1e-5)
    assert vp.level is level
    assert vp.z is z


def test_times_between_are_linear_in_log_sigma():
    def sigma(k):
        return SCHEDULE(k).sigma / SCHEDULE(k).alpha

    for k in (0, 500, 998):
        level = at_vp_level(edm_level(sigma(k) ** 0.75 * sigma(k + 1) ** 0.25), SCHEDULE)
        assert level.time == pytest.approx(k + 0.25, abs=1e-6)
        assert math.hypot(level.alpha, level.sigma) == pytest.approx(1)
        assert level.sigma / level.alpha == pytest.approx(sigma(k) ** 0.75 * sigma(k + 1) ** 0.25)


def test_levels_at_the_ends(model, asked):
    """Below its first time the network is asked at 0, and so it is for a clean state."""
    z = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    denoise = model.denoiser(None)
    denoise(z, edm_level(0.002))
    clean = denoise(z, CLEAN)
    assert asked.times == [0, 0]
    assert asked.x[0][0, 0, 0, 0] == pytest.approx(1 / math.hypot(1, 0.002), abs=1e-9)
    assert torch.equal(asked.x[1][:1], z)
    assert torch.equal(clean.x, z)
    with pytest.raises(
        UserError, match=r"up to sigma=157\.4.*has 200.*sigma_max=157\.4 or less"
    ) as e:
        denoise(z, edm_level(200.0))
    assert "\n" not in str(e.value)
    denoise(z, edm_level(157.4))


@pytest.mark.parametrize("pairing", ["ddim", "pndm"])
def test_a_vp_level_brings_its_own_time(model, asked, pairing):
    grid = quad(5, SCHEDULE, pairing=pairing)
    z = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    for level in grid:
        model.denoiser(None)(z, level)
    assert asked.times == [level.time for level in grid] == [800, 450, 200, 50, 0, 0]
    assert all(torch.equal(x[:1], z) for x in asked.x)


def test_edm_s_grid_and_sampler_run_on_it(model):
    """And, the levels being the same, DDIM on EDM's coordinates is DDIM on VP's."""
    rng = Generators([0, 1])
    grid = karras(8)
    z = model.start(rng, grid[0])
    assert end(heun, model.denoiser(None), z, grid).isfinite().all()
    vp = tuple(at_vp_level(level, SCHEDULE) for level in grid)
    x = end(multistep, model.denoiser(None), z, grid)
    same = end(multistep, model.denoiser(None), z * vp[0].alpha, vp)
    torch.testing.assert_close(x, same, rtol=0, atol=1e-3)


def test_rows_do_not_depend_on_the_batch(model):
    z = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    denoise = model.denoiser(None)
    assert torch.equal(denoise(z, SCHEDULE(500)).eps[2:3], denoise(z[2:3], SCHEDULE(500)).eps)


def test_the_start_is_standard_in_vp_coordinates(model):
    noise = Generators([3, 4]).randn(model.shape).double()
    for level, scale in [(SCHEDULE(999), 1), (Level(0.6, 0.8, 5.0), 1), (edm_level(80.0), 80)]:
        z = model.start(Generators([3, 4]), level)
        assert z.dtype == torch.float64
        torch.testing.assert_close(z, noise * scale)


def test_pixels_and_states(model):
    """All 256 values survive the round trip; between them, the nearest is taken."""
    pixels = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)
    for images in (pixels, 255 - pixels):
        state = model.encode(images)
        assert state.dtype == torch.float64
        assert torch.equal(model.decode(state), images)
    assert (model.encode(255 - pixels).max(), model.encode(pixels).min()) == (1, -1)
    values = torch.tensor([-9, -1e-9, 0.49, 0.51, 127.49, 127.51, 254.51, 255, 300])
    assert model.decode(values.double() / 127.5 - 1).tolist() == [
        0,
        0,
        0,
        1,
        127,
        128,
        255,
        255,
        255,
    ]


def test_other_schedules_have_other_ends():
    with pytest.raises(UserError, match="up to sigma=1, and the grid has 2"):
        at_vp_level(edm_level(2.0), DiscreteVP([0.9, 0.5]))
