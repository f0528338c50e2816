"""The files that PNDM's networks are in: ours, the original ones and diffusers'."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.models import edm, parameter_count, pndm
from bdia_exp.models.ddpm import DDPM, DDPMUNet, by_our_names, load
from bdia_exp.samplers.schedules import edm as edm_level
from bdia_exp.sources.checkpoints import read
from tests.models.tiny_ddpm import SCHEDULE, TINY, network, published


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
    expected = DDPM(net, SCHEDULE, {}).denoiser(None)(z, level).eps
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
        shapes = DDPMUNet(**network_).state_dict()
    torch.save({k: torch.zeros(v.shape) for k, v in shapes.items()}, tmp_path / "net.ckpt")
    words = [f"model={name}", f"model.checkpoint={tmp_path}/net.ckpt", "model.network.ch=32"]
    built = settings("sample", words)
    model = built.model.make(device="cpu", dtype="auto")
    size = network_["image_size"]
    assert model.shape == (3, size, size)
    assert built.reference == f"fetch:fid_{name.removeprefix('ddim_')}_train.npz"
    assert built.features.make.keywords["resize"] == "pytorch"


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
    from diffusers import UNet2DModel  # takes seconds

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


def test_our_names_stay():
    state = network(TINY).state_dict()
    assert list(by_our_names(state)) == list(state)


def test_a_safetensors_without_a_description(tmp_path):
    state = network(TINY).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    file = read(tmp_path / "net.safetensors")
    assert (file.config, file.state.keys()) == ({}, state.keys())
    with pytest.raises(UserError, match="has weights but does not say of which network"):
        edm.load(str(tmp_path / "net.safetensors"))


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
    with pytest.raises(UserError, match="has weights but does not say of which network"):
        edm.load(str(tmp_path / "ddim_cifar10.ckpt"))


def test_the_former_names_go_on_working():
    assert (pndm.DDIMUNet, pndm.DDIM, pndm.load) == (DDPMUNet, DDPM, load)


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
    [
        ({"chh": 1}, "chh is no field"),
        ({"ch": 7}, "ch=7 must be a multiple of 32"),
        ({"ch": "a"}, "ch=a must be a whole number"),
        ({"resamp_with_conv": False}, "resamp_with_conv=true"),
        ({"ch_mult": [1] * 5}, "a size of 8 cannot be halved 4 times"),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, change, said):
    torch.save({"a.bias": torch.ones(2)}, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match=rf"model\.network describes no network.*{said}"):
        load(str(tmp_path / "net.ckpt"), network={**TINY, **change})
