"""Every sampler of configs/sampler runs on every family of networks."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from bdia_exp import batching
from bdia_exp.cli.configs import composed, settings
from bdia_exp.cli.files import options
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.ddpm import DDPM, DDPMUNet
from bdia_exp.models.stable_diffusion import StableDiffusion
from bdia_exp.samplers.cost import evaluations
from bdia_exp.samplers.linear import CLD
from bdia_exp.samplers.schedules import linear_vp

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


OF_DIFFUSIONS = [
    name
    for name in options("sampler")
    if composed("sample", [f"sampler={name}"])[1]["grid"] == "quadratic_time"
]


@pytest.mark.parametrize("family", ["edm", "ddim", "sd"])
@pytest.mark.parametrize("name", [n for n in options("sampler") if n not in OF_DIFFUSIONS])
def test_a_sampler_runs_on_every_model(name, family):
    words = [f"sampler={name}"]
    if family == "sd":
        grid = "karras" if name == "edm_churn" else "leading"
        words += ["model=tiny-sd", f"grid={grid}", "grid.sigma_max=9" * (grid == "karras")]
    words = [word for word in words if word]
    if settings("sample", words).sampler.config.get("coefficients"):
        words.append("sampler.coefficients=null")  # tests/verbs/test_fit.py fits them
    asked = settings("sample", words)
    cost = evaluations(asked.sampler.make, asked.grid.make(2, linear_vp()))
    model = Choice(family, asked.model.config, OF_TESTS.get(family, asked.model.make))
    job = Job.of(replace(asked, nfe=cost, model=model), "cpu")
    made = job.sample([0, 1], lambda: None)
    assert made.nfe == cost
    assert made.states.shape == (2, *job.model.shape)
    images = job.model.decode(made.states)
    assert images.shape == (2, *job.model.image_shape)
    assert images.float().std() > 1


@pytest.mark.parametrize("family", ["edm", "ddim"])
@pytest.mark.parametrize("name", [*OF_DIFFUSIONS, "ddim", "bdia_ddim", "cbdia", "ipndm"])
def test_a_sampler_of_diffusions_runs_on_every_model_of_images(name, family):
    words = ["diffusion=cld", f"sampler={name}", *["sampler.rtol=1e9"] * (name == "cld_rk45")]
    asked = settings("sample", words)
    cost = evaluations(asked.sampler.make, asked.grid.make(2, CLD()))
    model = Choice(family, asked.model.config, OF_TESTS.get(family, asked.model.make))
    job = Job.of(replace(asked, nfe=cost, model=model), "cpu")
    made = job.sample([0, 1], lambda: None)
    assert made.nfe == cost
    assert made.states.shape == (2, *job.model.shape) == (2, 2, *job.model.image_shape)
    assert job.model.decode(made.states).shape == (2, *job.model.image_shape)


@pytest.mark.parametrize("name", OF_DIFFUSIONS)
def test_a_sampler_of_diffusions_asks_for_one(name):
    with pytest.raises(UserError, match="choose diffusion=cld"):
        Job.of(settings("sample", [f"sampler={name}"]), "cpu")
