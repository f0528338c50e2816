"""On a GPU no operation mixes devices, and sampling does not wait. The GPU is a pretended one."""

import pytest
import torch
from PIL import Image

from bdia_exp import Generators, multistep, quad
from bdia_exp.cli.configs import call
from bdia_exp.cli.files import options
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.ddpm import DDPM, DDPMUNet
from bdia_exp.models.running import Running
from bdia_exp.samplers.schedules import linear_vp
from tests.asking import OF_DIFFUSIONS, with_sampler
from tests.models.tiny_ddpm import TINY
from tests.pretended_gpu import pretended_gpu

SHOWN = "images=shown.png class=1 nfe=4"
EDITED = "images=bundled:fashion_edits.zip pairs=bundled:fashion_edits_colour.csv limit=2"
COMMANDS = [
    "sample sampler=edm nfe=5 images=70 score=true save=shards",
    "sample model=fashion_guided guidance=2 nfe=5 images=2",
    "sample model=toy nfe=5 images=2",
    "sample model=fashion_mini dtype=bfloat16 tf32=true nfe=5 images=2",
    "fit sampler=bdia_ddim grid=karras nfe=4 fit.images=4 fit.fine=8",
    "fit sampler=iia_edm grid=karras nfe=3 fit.images=4 fit.fine=8 fit.target=local",
    *(f"roundtrip {SHOWN} sampler={name}" for name in ("edict", "cbdia", "rex", "ddim")),
    f"roundtrip {SHOWN} sampler.gamma=0.9 state=fixed",
    f"roundtrip {SHOWN} diffusion=cld",
    f"invert {SHOWN}",
    f"edit {SHOWN} to=3 strength=0.8 classify=true",
]
OF_TEXTS = [
    "sample model=tiny-sd sampler=dpmpp_2m grid=time_uniform prompt=x guidance=3 nfe=3 images=2",
    "sample model=tiny-sd sampler=rex grid=leading prompt=x dtype=bfloat16 nfe=4 images=2",
    "sample model=mini_sd condition=mini_controlnet control=auto:canny:shown.png prompt=x nfe=3"
    " images=2",
    f"edit {EDITED} model=mini_sd guidance=3 nfe=5 strength=0.8",
]


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """An image in the working directory."""
    monkeypatch.chdir(tmp_path)
    Image.new("L", (32, 32), 128).save("shown.png")


@pytest.mark.quick
def test_an_operation_on_two_devices_is_refused(gpu):
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    assert (there + there).device == torch.device("cuda:0")
    assert (there * 2).cpu().tolist() == [1, 1]
    assert gpu.reads == 1
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        there + here


@pytest.mark.parametrize("name", options("sampler"))
def test_a_sampler_keeps_to_the_gpu_and_does_not_wait(gpu, name):
    asked = with_sampler(name, 3, *["diffusion=cld"] * (name in OF_DIFFUSIONS))
    job = Job.of(asked, "cuda")
    gpu.reads = 0
    made = job.sample([0, 1], lambda: None)
    assert gpu.reads == 1 or name == "cld_rk45"  # whether all is finite
    assert job.model.decode(made.states).device.type == "cuda"


def test_a_network_of_pndm_keeps_to_the_gpu(gpu):
    running = Running("cuda:0")
    model = DDPM(running.ready(DDPMUNet(**TINY)), linear_vp(), {}, running)
    grid = quad(3, model.schedule)
    z = model.start(Generators([0, 1]), grid[0])
    *_, x = multistep(model.denoiser(None), z, grid, gamma=0.5)
    assert model.decode(x).device.type == "cuda"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_keeps_to_the_gpu(gpu, command, shown):
    keeps_to(gpu, command)


@pytest.mark.parametrize("command", OF_TEXTS)
def test_a_command_of_texts_keeps_to_the_gpu(gpu, stable_diffusion, command, shown):
    keeps_to(gpu, command)


def keeps_to(gpu, command):
    verb, *words = command.split()
    record = call(verb, [*words, "device=cuda", "out=out"])
    assert record["device"] == "a pretended GPU"
    assert gpu.copies
    assert gpu.reads
