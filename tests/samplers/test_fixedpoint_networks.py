"""Fixed point with networks that compute in few bits, in other processes and other layouts."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bdia_exp import batching
from bdia_exp.models import edm
from bdia_exp.samplers.core import Denoiser, Estimate, Level
from bdia_exp.samplers.fixedpoint import Log, bdia_ddim, quantise, rational, undo
from bdia_exp.samplers.grids import karras
from tests.laws import vp_arc
from tests.samplers.round_trips import both_ways, there_and_back


def conv_net(dtype: torch.dtype) -> Denoiser:
    """A random network of two convolutions."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    net = net.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)

    def denoise(z: Tensor, level: Level) -> Estimate:
        scale = math.hypot(level.alpha, level.sigma)
        return Estimate(level, z, net((z / scale).to(dtype)).to(z.dtype))

    return denoise


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", [Fraction(1), rational(0.92), rational(0.5)], ids=str)
def test_networks_that_compute_in_few_bits(dtype, gamma, to_noise):
    start = quantise(torch.randn(5, 3, 9, 9).double())
    there_and_back(conv_net(dtype), start, vp_arc(20), gamma, to_noise=to_noise)


@both_ways
def test_the_bundled_model_in_bfloat16(to_noise, monkeypatch):
    monkeypatch.setattr(batching, "ROWS", 2)  # both ways have the same two rows
    model = edm.load("bundled:fashion_mini.safetensors", dtype="bfloat16")
    grid = karras(3)
    z = torch.randn(2, *model.shape).double() * (0.5 if to_noise else 80)
    denoiser = model.denoiser(torch.tensor([3, 7]))
    there_and_back(denoiser, quantise(z), grid, rational(0.92), to_noise=to_noise)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both_ways
def test_on_a_gpu(to_noise):
    model = edm.load("bundled:fashion_mini.safetensors", device="cuda", dtype="bfloat16")
    z = torch.randn(16, *model.shape, device="cuda").double() * (0.5 if to_noise else 80)
    denoiser = model.denoiser(torch.arange(16) % 10)
    there_and_back(denoiser, quantise(z), karras(20), rational(0.5), to_noise=to_noise)


def test_an_image_comes_back_in_another_process(tmp_path):
    model = edm.load("bundled:fashion_mini.safetensors", dtype="bfloat16")
    grid, log = karras(3)[::-1], Log()
    start = quantise(torch.rand(1, *model.shape) * 2 - 1)
    denoiser = model.denoiser(torch.tensor([3]))
    *_, (older, newer) = bdia_ddim(denoiser, start, grid, gamma=1 / rational(0.92), log=log)
    file = tmp_path / "pass.safetensors"
    save_file({"start": start, "older": older, "newer": newer, **log.tensors()}, file)
    program = """
import sys, torch
from safetensors.torch import load_file
from bdia_exp.samplers.fixedpoint import Log, undo
from bdia_exp.samplers.grids import karras
from bdia_exp.models import edm
torch.set_num_threads(1)
kept = load_file(sys.argv[1])
model = edm.load("bundled:fashion_mini.safetensors", dtype="bfloat16")
denoiser = model.denoiser(torch.tensor([3]))
pair = kept["older"], kept["newer"]
*_, (back, _) = undo(denoiser, pair, karras(3)[::-1], Log.from_tensors(kept))
assert torch.equal(back, kept["start"])
"""
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)


def test_the_memory_layout_of_a_state_does_not_matter():
    denoiser = conv_net(torch.bfloat16)
    grid, log = vp_arc(6), Log()
    start = quantise(torch.randn(4, 3, 9, 9).double())
    *_, pair = bdia_ddim(denoiser, start, grid, gamma=rational(0.92), log=log)
    other = tuple(z.contiguous(memory_format=torch.channels_last) for z in pair)
    *_, (back, _) = undo(denoiser, other, grid, log)
    assert torch.equal(back, start)
