"""EDM's networks against the original ones: names, shapes and outputs (tests/golden/README.md)."""

import ast
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from bdia_exp.models import parameter_count
from bdia_exp.models.edm import EDM, EDMPrecond
from bdia_exp.models.unets import DhariwalUNet, SongUNet
from bdia_exp.samplers.core import CLEAN, Estimate, Level
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.loops import heun
from bdia_exp.samplers.schedules import edm, linear_vp
from tests.laws import end

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ["tiny_song", "tiny_song_uncond", "tiny_adm", "tiny_ncsnpp"]
SONG = {"model_type": "SongUNet", "model_channels": 128, "augment_dim": 9}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
PUBLISHED = {
    "edm_cifar10_cond_ve": (
        56_400_643,
        {"img_resolution": 32, "label_dim": 10, "channel_mult": [2, 2, 2], **SONG, **NCSNPP},
    ),
    "edm_cifar10_cond_vp": (
        55_735_299,
        {"img_resolution": 32, "label_dim": 10, "channel_mult": [2, 2, 2], **SONG},
    ),
    "edm_ffhq_afhqv2_uncond_vp": (
        61_805_571,
        {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], **SONG},
    ),
    "edm_imagenet_cond_adm": (
        295_899_267,
        {"img_resolution": 64, "label_dim": 1000, "model_type": "DhariwalUNet", "use_fp16": True},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_sizes_are_the_published_ones(name):
    params, config = PUBLISHED[name]
    with torch.device("meta"):
        net = EDMPrecond(img_channels=3, **config)
    expected = {}
    for line in (GOLDEN / f"{name}.txt").read_text().splitlines():
        key, shape = line.split(maxsplit=1)
        expected[f"model.{key}"] = ast.literal_eval(shape)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == expected
    assert parameter_count(net) == params


def by_formula(name: str, shape: torch.Size) -> torch.Tensor:
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    r = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
    if len(shape) > 1:
        return r / np.float32(math.sqrt(math.prod(shape[1:])))
    return 1 + 0.1 * r if name.endswith(".weight") else 0.02 * r


RESAMPLE = {
    n: (torch.outer(line, line) / line.sum() ** 2)[None, None]
    for n, line in ((len(x), torch.tensor(x)) for x in ([1.0, 1.0], [1.0, 3.0, 3.0, 1.0]))
}


def figures_of(name: str):
    """The network with its weights by formula, the figures, and the labels one-hot."""
    figures = np.load(GOLDEN / f"edm_{name}.npz")
    with torch.device("meta"):
        net = EDMPrecond(**json.loads(str(figures["config"])))
    state = {
        key: RESAMPLE[value.shape[-1]]
        if key.endswith("resample_filter")
        else by_formula(key, value.shape)
        for key, value in net.state_dict().items()
    }
    net.load_state_dict(state, assign=True)
    figures = {key: torch.from_numpy(figures[key]) for key in figures if key != "config"}
    labels = one_hot(figures["labels"], net.label_dim) if "labels" in figures else None
    return net.eval().requires_grad_(False), figures, labels


@pytest.fixture(scope="module", params=[*TINY, "cifar10"])
def golden(request):
    return figures_of(request.param)


def test_outputs_are_the_original_s(golden):
    net, figures, labels = golden
    assert parameter_count(net) == figures["params"]
    denoised = net(figures["x"], figures["sigma"], labels)
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised, figures["denoised"], rtol=1e-5, atol=1e-5)


def test_five_heun_steps_are_the_original_s(golden):
    net, figures, labels = golden

    def model(z, level):
        return Estimate.from_x(level, z, net(z, level.sigma, labels).double())

    x = end(heun, model, figures["latents"].double() * 80, karras(5))
    torch.testing.assert_close(x, figures["sampled_5steps"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_song", "tiny_adm"])
def test_no_label_is_the_zero_label(name):
    net, figures, labels = figures_of(name)
    none = net(figures["x"], figures["sigma"])
    assert torch.equal(none, net(figures["x"], figures["sigma"], torch.zeros_like(labels)))
    assert (none - net(figures["x"], figures["sigma"], labels)).abs().max() > 1e-3


def test_preconditioning():
    """D(x; σ) = c_skip x + c_out F(c_in x; ln σ/4) [EDM 7], with σ_data = ½."""
    net = EDMPrecond(8, 1, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    seen = {}

    def body(x, noise, labels):
        seen.update(x=x, noise=noise)
        return torch.ones_like(x)

    net.model.forward = body
    x, sigma, data = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 30.0]), 0.5
    denoised = net(x, sigma)
    for i, s in enumerate(sigma.tolist()):
        norm = math.sqrt(s**2 + data**2)
        torch.testing.assert_close(seen["x"][i], x[i] / norm)
        assert float(seen["noise"][i]) == pytest.approx(math.log(s) / 4)
        torch.testing.assert_close(denoised[i], x[i] * data**2 / norm**2 + s * data / norm)


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("embedding_type", "learned", "positional and fourier"),
        ("encoder_type", "skip", "standard and residual"),
        ("decoder_type", "skip", "standard"),
    ],
)
def test_options_that_are_not_supported_are_named(option, value, known):
    with pytest.raises(ValueError, match=f"{option}={value} is not supported: only {known}$"):
        EDMPrecond(16, 3, model_type="SongUNet", **{option: value})


def test_an_unknown_model_type_is_refused():
    with pytest.raises(ValueError, match="'UNet' is not one of SongUNet, DhariwalUNet"):
        EDMPrecond(16, 3, model_type="UNet")


@pytest.mark.parametrize("network", [SongUNet, DhariwalUNet])
def test_a_fresh_network_is_near_the_identity_of_its_skip(network):
    """The last layer starts near zero, so D starts as c_skip x."""
    net = EDMPrecond(16, 1, model_type=network.__name__, model_channels=64, channel_mult=[1, 1])
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(net.eval()(x, 0.5), x / 2, rtol=0, atol=1e-3)


# --- The network as a model ---


@pytest.fixture(scope="module")
def model():
    net, figures, _ = figures_of("tiny_song")
    return EDM(net, linear_vp(), {}), figures["x"].double(), figures["labels"]


def test_a_vp_level_is_served_in_edm_s_coordinates(model):
    edm_model, z, labels = model
    denoise = edm_model.denoiser(labels)
    vp = denoise(z, Level(0.6, 0.8, 5.0))
    ve = denoise(z / 0.6, edm(0.8 / 0.6))
    torch.testing.assert_close(vp.eps, ve.eps)
    torch.testing.assert_close(vp.x, ve.x)
    assert vp.z is z
    assert vp.eps.dtype == torch.float64


def test_the_clean_level_has_a_finite_estimate(model):
    edm_model, x, labels = model
    estimate = edm_model.denoiser(labels)(x, CLEAN)
    assert estimate.eps.isfinite().all()
    assert torch.equal(estimate.x, x)


def test_pixels_and_states(model):
    """All 256 values survive the round trip; between them, the fraction is cut off."""
    edm_model, *_ = model
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    state = edm_model.encode(pixels)
    assert state.dtype == torch.float64
    assert (state.min(), state.max()) == (-1, 1)
    assert torch.equal(edm_model.decode(state), pixels)
    between = torch.tensor([-2.0, -1.0, -0.0001, 0.0, 0.9999, 1.0, 2.0], dtype=torch.float64)
    assert edm_model.decode(between).tolist() == [0, 0, 127, 128, 255, 255, 255]
