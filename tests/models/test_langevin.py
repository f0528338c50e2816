"""EDM and VP networks as Langevin models of pairs (x, v)."""

from functools import cache

import pytest
import torch

from bdia_exp import batching
from bdia_exp.errors import UserError
from bdia_exp.models import langevin
from bdia_exp.models.ddpm import DDPM, DDPMUNet
from bdia_exp.models.edm import load as load_edm
from bdia_exp.samplers.core import CLEAN, Estimate
from bdia_exp.samplers.linear import CLD
from bdia_exp.samplers.schedules import edm, linear_vp
from bdia_exp.seeds import Generators

DIFFUSION = CLD()


@cache
def fashion():
    return load_edm("bundled:fashion_mini.safetensors")


@cache
def vp():
    torch.manual_seed(0)
    options = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
    net = DDPMUNet(**options, image_size=8, in_channels=3, out_ch=3).eval().requires_grad_(False)
    return DDPM(net, linear_vp(), {})


def pairs(model, count=2):
    return model.start(Generators(range(count)), DIFFUSION.level(1.0))


def test_a_pair_starts_at_rest_with_the_noise_of_its_seed():
    """x is N(0, 1) and v is N(0, M), M = ¼."""
    model = langevin.cld(fashion())
    assert model.shape == (2, 1, 32, 32)
    assert model.image_shape == (1, 32, 32)
    u = pairs(model, 40)
    assert u.dtype == torch.float64
    assert u.shape == (40, 2, 1, 32, 32)
    assert u[:, 0].std() == pytest.approx(1, abs=0.02)
    assert u[:, 1].std() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(pairs(model, 3), u[:3])


def test_an_image_is_a_pair_without_velocity():
    model = langevin.cld(fashion())
    images = torch.arange(256, dtype=torch.uint8).repeat(4).reshape(1, 1, 32, 32)
    u = model.encode(images)
    assert torch.equal(u[:, 0], fashion().encode(images))
    assert not u[:, 1].any()
    u[:, 1] = 5.0
    assert torch.equal(model.decode(u), images)


@pytest.mark.parametrize("own", [fashion, vp])
@pytest.mark.parametrize("t", [0.3, 0.01])
def test_the_network_is_asked_once_about_the_best_observation(own, t, monkeypatch):
    """E[x_0 | u] = D(y; σ_eff), and the split follows from it."""
    monkeypatch.setattr(batching, "ROWS", 2)
    model = langevin.cld(own())
    labels = torch.tensor([1, 5]) if own is fashion else None
    u, level = pairs(model), DIFFUSION.level(t)
    found = model.denoiser(labels)(u, level)
    (w_x, w_v), sigma = DIFFUSION.observation(t)
    x = own().denoiser(labels)(w_x * u[:, 0] + w_v * u[:, 1], edm(sigma)).x
    wanted = Estimate.from_x(level, u, torch.stack([x, 0 * x], 1))
    assert torch.equal(found.eps, wanted.eps)
    torch.testing.assert_close(found.x[:, 0], x, rtol=0, atol=1e-9)
    assert found.x[:, 1].abs().max() < 1e-9
    if labels is not None:
        assert not torch.equal(model.denoiser(labels.flip(0))(u, level).eps, found.eps)


@pytest.mark.parametrize("own", [fashion, vp])
def test_the_ends_of_the_way_are_within_the_network_s_range(own, monkeypatch):
    """At t = 1, σ_eff is 248 and VP networks end at 157; at 0 it is 1e-3."""
    monkeypatch.setattr(batching, "ROWS", 2)
    model = langevin.cld(own())
    for level in (DIFFUSION.level(1.0), DIFFUSION.level(1e-3), CLEAN):
        estimate = model.denoiser(None)(pairs(model), level)
        assert estimate.eps.isfinite().all()
        assert estimate.level == level


def test_a_text_model_is_refused():
    from bdia_exp.cli.configs import settings

    asked = settings("sample", ["model=tiny-sd", "diffusion=cld"])
    with pytest.raises(UserError, match=r"text model's noise ends.*leave diffusion= out"):
        asked.load("meta")


def test_without_a_diffusion_a_model_is_itself():
    assert langevin.own(fashion()) is fashion()
