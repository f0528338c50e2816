"""Every sampler of configs/sampler runs on every family of networks."""

from functools import cache

import pytest
import torch

from bdia_exp import batching
from bdia_exp.cli import arguments, options
from bdia_exp.models.pndm import DDPM, DDPMUNet
from bdia_exp.models.stable_diffusion import StableDiffusion
from bdia_exp.sampling import Job
from bdia_exp.schedules import linear_vp
from bdia_exp.solvers import evaluations

TINY = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "image_size": 8, "attn_resolutions": [4]}


def tiny_ddim(device: str, dtype: str) -> DDPM:
    """A network of PNDM's kind with random weights."""
    torch.manual_seed(0)
    net = DDPMUNet(**TINY, in_channels=3, out_ch=3).eval().requires_grad_(False)
    return DDPM(net, linear_vp(), {"sha256": "none"})


@cache
def tiny_sd(device: str, dtype: str) -> StableDiffusion:
    return arguments("sample", ["model=tiny-sd"])["model"](device=device, dtype=dtype)


OF_TESTS = {"ddim": tiny_ddim, "sd": tiny_sd}


@pytest.fixture(autouse=True)
def _two_rows(monkeypatch):
    """Batches are not padded to 16 rows: no bits are compared here."""
    monkeypatch.setattr(batching, "ROWS", 2)


@pytest.mark.parametrize("family", ["edm", "ddim", "sd"])
@pytest.mark.parametrize("name", options("sampler"))
def test_a_sampler_runs_on_every_model(name, family):
    words = [f"sampler={name}"]
    if family == "sd":
        grid = "karras" if name == "edm_churn" else "leading"
        words += ["model=tiny-sd", f"grid={grid}", "grid.sigma_max=9" * (grid == "karras")]
    given = arguments("sample", [word for word in words if word], described=True)
    cost = evaluations(given["sampler"], given["grid"](2, linear_vp()))
    job = Job.build(
        model=OF_TESTS.get(family, given["model"]),
        sampler=given["sampler"],
        grid=given["grid"],
        device="cpu",
        config=given["config"] | {"nfe": cost},
    )
    made = job.sample([0, 1], lambda: None)
    assert made.nfe == cost
    assert made.states.shape == (2, *job.model.shape)
    images = job.model.decode(made.states)
    assert images.shape == (2, *job.model.image_shape)
    assert images.float().std() > 1
