"""Every sampler of configs/sampler runs on every family of networks."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from bdia_exp import batching
from bdia_exp.cli.configs import settings
from bdia_exp.cli.files import options
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.ddpm import DDPM, DDPMUNet
from bdia_exp.models.stable_diffusion import StableDiffusion
from bdia_exp.samplers.schedules import linear_vp
from tests.asking import OF_DIFFUSIONS, with_sampler

TINY = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "image_size": 8, "attn_resolutions": [4]}


def tiny_ddim(device: str, dtype: str) -> DDPM:
    """A network of PNDM's kind with random weights."""
    torch.manual_seed(0)
    net = DDPMUNet(**TINY, in_channels=3, out_ch=3).eval().requires_grad_(False)
    return DDPM(net, linear_vp(), {"sha256": "none"})


@cache
def tiny_sd(device: str, dtype: str) -> StableDiffusion:
    return settings("sample", ["model=tiny-sd"]).model.make(device=device, dtype=dtype)


@pytest.fixture(autouse=True)
def _two_rows(monkeypatch):
    """Batches are not padded to 16 rows: no bits are compared here."""
    monkeypatch.setattr(batching, "ROWS", 2)


OF_TESTS = {"ddim": tiny_ddim, "sd": tiny_sd}


@pytest.mark.parametrize("family", ["edm", "ddim", "sd"])
@pytest.mark.parametrize("name", [n for n in options("sampler") if n not in OF_DIFFUSIONS])
def test_a_sampler_runs_on_every_model(name, family):
    words = []
    if family == "sd":
        grid = "karras" if name == "edm_churn" else "leading"
        words = ["model=tiny-sd", f"grid={grid}", *["grid.sigma_max=9"] * (grid == "karras")]
    asked = with_sampler(name, 2, *words)
    model = Choice(family, asked.model.config, OF_TESTS.get(family, asked.model.make))
    job = Job.of(replace(asked, model=model), "cpu")
    made = job.sample([0, 1], lambda: None)
    assert made.nfe == asked.nfe
    assert made.states.shape == (2, *job.model.shape)
    images = job.model.decode(made.states)
    assert images.shape == (2, *job.model.image_shape)
    assert images.float().std() > 1


@pytest.mark.parametrize("family", ["edm", "ddim"])
@pytest.mark.parametrize("name", [*OF_DIFFUSIONS, "ddim", "bdia_ddim", "cbdia", "ipndm"])
def test_a_sampler_of_diffusions_runs_on_every_model_of_images(name, family):
    asked = with_sampler(name, 2, "diffusion=cld")
    model = Choice(family, asked.model.config, OF_TESTS.get(family, asked.model.make))
    job = Job.of(replace(asked, model=model), "cpu")
    made = job.sample([0, 1], lambda: None)
    assert made.nfe == asked.nfe
    assert made.states.shape == (2, *job.model.shape) == (2, 2, *job.model.image_shape)
    assert job.model.decode(made.states).shape == (2, *job.model.image_shape)


@pytest.mark.parametrize("name", OF_DIFFUSIONS)
def test_a_sampler_of_diffusions_asks_for_one(name):
    with pytest.raises(UserError, match="choose diffusion=cld"):
        Job.of(settings("sample", [f"sampler={name}"]), "cpu")
