"""PNDM's networks against the original ones (tests/golden/README.md), and the files they are in."""

import ast
import io
import json
import math
import os
import pickle
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from bdia_exp import cli, torch_files
from bdia_exp.checkpoints import read
from bdia_exp.core import CLEAN, Estimate, Level
from bdia_exp.errors import UserError
from bdia_exp.grids import karras, quad, uniform
from bdia_exp.models import at_vp_level, edm, parameter_count
from bdia_exp.models.pndm import DDIM, DDIMUNet, by_our_names, load
from bdia_exp.schedules import DiscreteVP, linear_vp
from bdia_exp.schedules import edm as edm_level
from bdia_exp.seeds import Generators
from bdia_exp.solvers import heun, multistep
from tests.laws import end
from tests.models.test_edm_network import GOLDEN, by_formula
from tests.sources.test_checkpoints import Call, flip

TINY = {
    "type": "simple",
    "image_size": 8,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.1,
    "resamp_with_conv": True,
}
SCHEDULE = linear_vp()


def published(name: str) -> dict:
    """The network's description in configs/model."""
    return OmegaConf.to_container(OmegaConf.load(cli.CONFIGS / "model" / f"{name}.yaml"))["model"][
        "network"
    ]


def network(config: dict) -> DDIMUNet:
    """With its weights by the formula of tests/golden/README.md."""
    with torch.device("meta"):
        net = DDIMUNet(**config)
    state = {name: by_formula(name, value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("ddim_cifar10", 35_746_307), ("ddim_celeba", 78_700_803)]
)
def test_names_shapes_and_sizes_are_the_published_ones(name, count):
    with torch.device("meta"):
        net = DDIMUNet(**published(name))
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
        DDIMUNet(**{**TINY, **option})


# --- the network as a model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return DDIM(network(TINY), SCHEDULE, {})


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


# --- files ---------------------------------------------------------------------------------------


def other(state: dict) -> dict:
    """Weights that are not to be taken."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def in_parallel(state: dict) -> dict:
    return {f"module.{name}": value for name, value in state.items()}


def optimiser(state: dict) -> dict:
    moments = {i: {"step": 3, "exp_avg": value} for i, value in enumerate(other(state).values())}
    return {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}


LAYOUTS = {
    "flat": lambda s: s,
    "parallel": in_parallel,
    "as parameters": lambda s: {name: torch.nn.Parameter(value) for name, value in s.items()},
    "ddim": lambda s: [in_parallel(other(s)), optimiser(s), 7, 790_000, in_parallel(s)],
    "ddim without averages": lambda s: [in_parallel(s), optimiser(s), 7, 790_000],
    "tuple": lambda s: (other(s), s),
    "ema": lambda s: {"model": other(s), "optimizer": optimiser(s), "step": 3, "ema": s},
    "shadow": lambda s: {"ema": {"mu": 0.999, "shadow": in_parallel(s)}, "state_dict": other(s)},
    "ema_state_dict": lambda s: {"ema_state_dict": s, "state_dict": other(s), "ema": None},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": {"state_dict": s}, "ema": 0.999},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_layout_holds_the_same_weights(tmp_path, layout, zipped):
    state = network(TINY).state_dict()
    for suffix in (".ckpt", ".pt", ".pth", ".bin"):
        path = tmp_path / f"net{suffix}"
        torch.save(LAYOUTS[layout](state), path, _use_new_zipfile_serialization=zipped)
        file = read(path)
        assert file.config == {}
        assert file.path == path
        assert list(file.state) == list(state)
        for name, value in state.items():
            assert torch.equal(file.state[name], value)
            assert type(file.state[name]) is torch.Tensor


def test_other_precisions_and_strides_become_plain(tmp_path):
    state = {
        "a": torch.randn(3, 4).half(),
        "b": torch.randn(4, 3).double().t(),
        "n": torch.ones(1).int(),
    }
    torch.save(state, tmp_path / "a.pt")
    read_back = read(tmp_path / "a.pt").state
    assert {value.dtype for value in read_back.values()} == {torch.float32, torch.int32}
    for name, value in state.items():
        assert read_back[name].is_contiguous()
        assert torch.equal(read_back[name], value.to(read_back[name].dtype))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_a_checkpoint_becomes_a_model(tmp_path, dtype):
    net = network(TINY)
    path = tmp_path / "net.ckpt"
    torch.save(net.state_dict(), path)
    loaded = load(str(path), network=TINY, dtype=dtype)
    assert loaded.provenance == {
        "checkpoint": "net.ckpt",
        "sha256": read(path).sha256,
        "parameters": parameter_count(net),
    }
    z, level = torch.randn(2, 3, 8, 8, dtype=torch.float64), SCHEDULE(700)
    eps = loaded.denoiser(None)(z, level).eps
    expected = DDIM(net, SCHEDULE, {}).denoiser(None)(z, level).eps
    assert eps.dtype == torch.float64
    assert not any(p.requires_grad for p in loaded.net.parameters())
    exact = dtype in ("auto", "float32")
    error = (eps - expected).abs().max()
    assert error < 1e-5 if exact else 1e-4 < error < 0.1


@pytest.mark.parametrize("name", ["ddim_cifar10", "ddim_celeba"])
def test_the_configuration_loads_it(tmp_path, name):
    """The published configuration, narrower."""
    network_ = {**published(name), "ch": 32}
    with torch.device("meta"):
        shapes = DDIMUNet(**network_).state_dict()
    torch.save({k: torch.zeros(v.shape) for k, v in shapes.items()}, tmp_path / "net.ckpt")
    words = [f"model={name}", f"model.checkpoint={tmp_path}/net.ckpt", "model.network.ch=32"]
    built = cli.arguments("sample", words)
    model = built["model"](device="cpu", dtype="auto")
    size = network_["image_size"]
    assert model.shape == (3, size, size)
    assert built["reference"] == f"fetch:fid_{name.removeprefix('ddim_')}_train.npz"
    assert built["features"].keywords["resize"] == "pytorch"


def test_a_model_without_weights_needs_no_file():
    model = load("fetch:ddim_cifar10.ckpt", network=published("ddim_cifar10"), device="meta")
    assert model.provenance == {"parameters": 35_746_307}
    z = torch.empty(16, *model.shape, device="meta", dtype=torch.float64)
    for level in (SCHEDULE(500), edm_level(1.0)):
        assert model.denoiser(None)(z, level).x.shape == z.shape


DEEPER = {
    **TINY,
    "image_size": 16,
    "ch_mult": [1, 2, 3],
    "attn_resolutions": [8],
    "num_res_blocks": 2,
}


@pytest.fixture(scope="module")
def diffusers_net():
    """diffusers' network of `DEEPER`, with the options of google/ddpm-cifar10-32."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    for value in net.state_dict().values():
        value.add_(torch.randn_like(value), alpha=0.02)  # biases start at zero and hide errors
    return net.eval().requires_grad_(False)


def older_names(state: dict) -> dict:
    """The names that the attention layers had in diffusers' first versions."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in state.items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = value
    assert renamed.keys() != state.keys()
    return renamed


@pytest.mark.parametrize("layout", ["folder", "folder .bin", "file", "older names"])
def test_diffusers_layout(tmp_path, diffusers_net, layout):
    diffusers_net.save_pretrained(tmp_path, safe_serialization=layout != "folder .bin")
    assert (tmp_path / "config.json").is_file()
    path = tmp_path
    if layout != "folder":
        name = "diffusion_pytorch_model"
        path = tmp_path / (f"{name}.bin" if layout == "folder .bin" else f"{name}.safetensors")
    if layout == "older names":
        save_file(older_names(load_file(path)), path)
    loaded = load(str(tmp_path if "folder" in layout else path), network=DEEPER)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 901.0])
    theirs = diffusers_net(x, t).sample
    assert theirs.std() > 0.1
    torch.testing.assert_close(loaded.net(x, t), theirs, rtol=0, atol=1e-5)


def test_our_names_stay(model):
    state = model.net.state_dict()
    assert list(by_our_names(state)) == list(state)


def test_a_safetensors_without_a_description(tmp_path):
    state = network(TINY).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    file = read(tmp_path / "net.safetensors")
    assert (file.config, file.state.keys()) == ({}, state.keys())
    with pytest.raises(UserError, match="describes no network that we can build"):
        edm.load(str(tmp_path / "net.safetensors"))


# --- files that are not what they should be ------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def sentinel(tmp_path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def lightning(monkeypatch):
    """Lightning's class of a callback, for the time of writing a file."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module = types.ModuleType(name)
    module.ModelCheckpoint = kind
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return kind


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lightning_leaves_beside_the_weights(tmp_path, lightning, zipped, monkeypatch):
    """As in Stable Diffusion 1's files: a class as a key, numbers of NumPy's."""
    weights = {"model.diffusion_model.a": torch.ones(2), "model_ema.num_updates": torch.tensor(3)}
    best = {"best_model_score": np.float64(0.25), "monitor": "val/loss", "own": lightning()}
    root = {"epoch": 8, "global_step": 470000, "callbacks": {lightning: best}}
    root |= {"pytorch-lightning_version": "1.4.2", "state_dict": weights, "lr_schedulers": []}
    path = tmp_path / "sd.ckpt"
    torch.save(root, path, _use_new_zipfile_serialization=zipped)
    pickled = path.read_bytes()
    monkeypatch.undo()  # the module is not there when it is read
    assert b"ModelCheckpoint" in pickled
    assert b"multiarray" in pickled
    allowed = set(torch.serialization.get_safe_globals())
    state = read(path).state
    assert list(state) == list(weights)
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_nothing_else_beside_the_weights(tmp_path, lightning):
    lightning.__qualname__ = lightning.__name__ = "EarlyStopping"
    sys.modules[lightning.__module__].EarlyStopping = lightning
    torch.save({"state_dict": {}, "callbacks": {lightning: 1}}, tmp_path / "a.ckpt")
    assert f"refused: it asks for {lightning.__module__}.Early" in refusal(tmp_path / "a.ckpt")
    torch.save({"state_dict": {"a": np.zeros(3)}}, tmp_path / "a.ckpt")
    assert "refused: it asks for numpy" in refusal(tmp_path / "a.ckpt")
    torch.save({"state_dict": {"a": np.float64(1)}}, tmp_path / "a.ckpt")
    assert "no weights in it" in refusal(tmp_path / "a.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".safetensors"])
def test_nothing_is_executed(tmp_path, sentinel, suffix):
    evil = Call(os.system, f"touch {sentinel}")
    path = tmp_path / f"net{suffix}"
    for root in (evil, {"a": torch.zeros(1), "b": evil}, [evil, {"a": torch.zeros(1)}]):
        for zipped in (True, False):
            torch.save(root, path, _use_new_zipfile_serialization=zipped)
            text = refusal(path)
            if suffix not in (".pkl", ".safetensors"):
                assert f"refused: it asks for {os.name}.system" in text
                assert "nothing was executed" in text
        for protocol in (2, 4):
            path.write_bytes(pickle.dumps(root, protocol))
            refusal(path)


def test_the_oldest_format_never_reaches_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    with tarfile.open(tmp_path / "net.pt", "w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"\x80\x02N."))
    assert "a tar archive" in refusal(tmp_path / "net.pt")


def test_torch_load_is_always_restricted():
    package = Path(torch_files.__file__).parent
    calls = [line for path in package.rglob("*.py") for line in path.read_text().splitlines()]
    calls = [line for line in calls if "torch.load(" in line]
    assert calls
    assert all("weights_only=True" in line for line in calls)


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ([1, 2], "no weights in it.*but is list"),
        (7, "but is int"),
        ({}, "but is dict"),
        ([], "but is list"),
        (torch.zeros(3), "but is Tensor"),
        ({"ema": {}}, "a dict of ema"),
        ({"a": torch.zeros(1), "b": 3}, "a dict of a, b"),
        ({3: torch.zeros(1)}, "a dict of 3"),
        ({"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": []}, "state, param_groups"),
        (
            {"ema": {"shadow_params": [torch.zeros(1)]}, "model": {"a": torch.zeros(1)}},
            "ema, model",
        ),
        ({"a": torch.zeros(1).expand(1 << 40)}, "the tensor a is not stored number by number"),
        ({"a": torch.zeros(2).to_sparse()}, "the tensor a is not stored"),
        ({"a": torch.zeros(2, device="meta")}, "the tensor a is not stored"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_what_holds_no_weights_is_named(tmp_path, root, said):
    torch.save(root, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match=said):
        read(tmp_path / "net.ckpt")


@pytest.mark.filterwarnings("ignore::UserWarning")  # deprecated, and still to be met
def test_quantised_tensors_are_refused(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"a": quantised}, tmp_path / "net.ckpt")
    assert "the tensor a is not stored" in refusal(tmp_path / "net.ckpt")


def test_a_dict_that_holds_itself(tmp_path):
    loop: dict = {}
    loop["ema"] = loop
    torch.save(loop, tmp_path / "net.ckpt")
    assert "a dict of ema" in refusal(tmp_path / "net.ckpt")


def test_other_files_and_folders(tmp_path):
    path = tmp_path / "net.ckpt"
    for data, said in [
        (b"", "damaged or incomplete"),
        (b" \n<!DOCTYPE html><html>", "a web page"),
        (b"hello", "damaged or incomplete"),
        (b"PK\x03\x04" + bytes(40), "damaged or incomplete"),
    ]:
        path.write_bytes(data)
        assert said in refusal(path)
    assert "cannot be read" in refusal(tmp_path / "missing.pt")
    assert "a folder must hold diffusion_pytorch_model.safetensors" in refusal(tmp_path)
    (tmp_path / "net.onnx").touch()
    assert ".ckpt, .pt, .pth, .bin" in refusal(tmp_path / "net.onnx")


SMALL = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_flipped_files_read_or_are_refused(tmp_path, zipped):
    path = tmp_path / "net.ckpt"
    torch.save([SMALL, optimiser(SMALL), 1, SMALL], path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        read(path)

    for cut in {*range(1, len(data), 37), len(data) - 1}:
        path.write_bytes(data[:cut])
        refusal(path)
    assert 0 < flip(data, 400, check) < 400


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_diffusers_folder(tmp_path, diffusers_net):
    for safe, name in [(False, "model.bin"), (True, "model.safetensors")]:
        diffusers_net.save_pretrained(tmp_path, safe_serialization=safe)
        path = tmp_path / f"diffusion_pytorch_{name}"
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match="damaged or incomplete"):
            read(tmp_path)


def test_another_network_s_weights_are_refused(tmp_path, diffusers_net):
    """Each published checkpoint given to the other's configuration (narrower here), and others."""
    configs = {name: {**published(name), "ch": 32} for name in ("ddim_cifar10", "ddim_celeba")}
    for name, config in configs.items():
        torch.save(network(config).state_dict(), tmp_path / f"{name}.ckpt")
        load(str(tmp_path / f"{name}.ckpt"), network=config)
    with pytest.raises(UserError, match=r"cifar10\.ckpt does not fit this network; missing: "):
        load(str(tmp_path / "ddim_cifar10.ckpt"), network=configs["ddim_celeba"])
    with pytest.raises(UserError, match=r"celeba\.ckpt does not fit this network; missing: "):
        load(str(tmp_path / "ddim_celeba.ckpt"), network=configs["ddim_cifar10"])
    with pytest.raises(UserError, match="of another shape: temb"):
        load(str(tmp_path / "ddim_cifar10.ckpt"), network=published("ddim_cifar10"))
    diffusers_net.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit this network"):
        load(str(tmp_path), network=configs["ddim_cifar10"])
    with pytest.raises(UserError, match="does not fit this network; missing: temb"):
        load("bundled:fashion_mini.safetensors", network=TINY)
    with pytest.raises(UserError, match="describes no network that we can build"):
        edm.load(str(tmp_path / "ddim_cifar10.ckpt"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(3).long(), r"another kind of number: conv_out\.bias torch\.int64"),
        (torch.zeros(3).cfloat(), r"another kind of number: conv_out\.bias torch\.complex64"),
        (torch.tensor([0, 0, torch.nan]), r"not finite: conv_out\.bias"),
    ],
)
def test_weights_that_are_no_weights(tmp_path, value, said):
    torch.save({**network(TINY).state_dict(), "conv_out.bias": value}, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match=said):
        load(str(tmp_path / "net.ckpt"), network=TINY)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"chh": 1}, "unexpected keyword argument 'chh'"), ({"ch": 7}, "ch=7"), ({"ch": "a"}, "str")],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, change, said):
    torch.save(SMALL, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match=rf"model\.network describes no network.*{said}"):
        load(str(tmp_path / "net.ckpt"), network={**TINY, **change})


def test_other_schedules_have_other_ends():
    with pytest.raises(UserError, match="up to sigma=1, and the grid has 2"):
        at_vp_level(edm_level(2.0), DiscreteVP([0.9, 0.5]))
