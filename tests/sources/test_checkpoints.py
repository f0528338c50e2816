"""The checkpoint reader: what it reads back exactly, and what it refuses."""

import io
import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bdia_exp.errors import UserError
from bdia_exp.models.edm import EDMPrecond
from bdia_exp.sources import checkpoints
from bdia_exp.sources.checkpoints import Checkpoint, load_into, locate, read, sha256
from tests.sources.pickled import (
    ADM,
    SONG,
    TINY,
    EasyDict,
    Persistent,
    dump,
    edm,
    flip,
    network,
    persistent,
    refusal,
    write,
)

# --- reading back --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SONG, ADM, TINY], ids=["SongUNet", "DhariwalUNet", "tiny"])
def test_an_edm_pickle_comes_back_bit_for_bit(tmp_path, config):
    path = write(tmp_path, edm(config))
    file, net = read(path), network(config)
    assert {k: file.config[k] for k in config} == config
    assert file.config["sigma_data"] == 0.5
    assert list(file.state) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert torch.equal(file.state[name], tensor)
        assert file.state[name].dtype == torch.float32
        assert file.state[name].is_contiguous()
    assert file.sha256 == sha256(path)
    assert file.path == path
    assert file.record == {}

    again = EDMPrecond(**file.config).eval()
    load_into(again, file)
    x, labels = torch.randn(2, 1, 8, 8), torch.eye(3)[:2]
    assert torch.equal(again(x, 0.7, labels), net(x, 0.7, labels))


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_numpy_scalars_become_numbers(tmp_path, core):
    asked = dict(TINY, dropout=np.float64(0.13), augment_dim=np.int64(0), channel_mult=(1,))
    data = edm(asked, sigma_data=np.float32(0.25))
    written = np.float64.__reduce__(np.float64(0))[0].__module__.encode()  # by numpy's version
    name = b"numpy." + core + b".multiarray"
    data = data.replace(
        b"\x8c" + bytes([len(written)]) + written, b"\x8c" + bytes([len(name)]) + name
    )
    config = read(write(tmp_path, data)).config
    assert name in data
    assert (config["dropout"], config["augment_dim"], config["sigma_data"]) == (0.13, 0, 0.25)
    assert {type(config[k]) for k in ("dropout", "sigma_data")} == {float}
    assert config["channel_mult"] == [1]


def test_positional_arguments_are_named_and_attributes_win(tmp_path):
    rest = {k: v for k, v in TINY.items() if k not in ("img_resolution", "img_channels")}
    top = persistent(network(TINY), _init_args=(8, 5), _init_kwargs=rest, sigma_data=1.0)
    config = read(write(tmp_path, dump(dict(ema=top)))).config
    assert (config["img_resolution"], config["img_channels"], config["sigma_data"]) == (8, 1, 1.0)


def test_other_layouts_and_precisions_of_a_tensor(tmp_path):
    net = network(TINY)
    state = net.state_dict()
    layer = net.model.map_layer0
    layer.weight.data = layer.weight.data.t().contiguous().t()
    layer.bias.data = torch.cat([torch.ones(3), layer.bias.data, torch.ones(2)])[3:-2]
    net.model.map_layer1.weight.data = net.model.map_layer1.weight.data.half()
    net.model.map_layer1.bias.data = net.model.map_layer1.bias.data.double()
    top = persistent(net, _init_kwargs=EasyDict(TINY))
    file = read(write(tmp_path, dump(dict(ema=top))))
    state["model.map_layer1.weight"] = state["model.map_layer1.weight"].half().float()
    for name, tensor in file.state.items():
        assert torch.equal(tensor, state[name])
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("config", [SONG, ADM], ids=["SongUNet", "DhariwalUNet"])
def test_other_protocols(tmp_path, protocol, config):
    """Up to 2, modules have Python 2's names, and bytes are text."""
    more = dict(hooks={1}, frozen=frozenset((1, b"")))
    data = edm(config, protocol, sigma_data=np.float64(0.25), **more)
    assert (b"__builtin__" in data) == (protocol < 3)
    file, expected = read(write(tmp_path, data)), read(write(tmp_path, edm(config), "4.pkl"))
    assert file.config == expected.config | {"sigma_data": 0.25}
    assert list(file.state) == list(expected.state)
    assert all(torch.equal(file.state[name], value) for name, value in expected.state.items())


def test_our_own_safetensors(tmp_path):
    net = network(TINY)
    path = tmp_path / "mini.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    beside = tmp_path / "mini.json"
    with pytest.raises(UserError, match=r"mini\.json is missing"):
        read(path)
    for wrong in ["[]", "{}", '{"network": 3}', '{"network": {}, "training": 1}', '{"network": {']:
        beside.write_text(wrong)
        with pytest.raises(UserError, match=r"mini\.json beside it is not"):
            read(path)
    for wrong in [b"[" * 100_000, b"\xff\xfe{}", b"1" * 5000, b"", b"nul"]:
        beside.write_bytes(wrong)
        with pytest.raises(UserError, match="not valid JSON"):
            read(path)
    for wrong in [b"NaN", b"Infinity", b"3", b'"a"', b"null", b'{"network": null}']:
        beside.write_bytes(wrong)
        with pytest.raises(UserError, match="is not of the form"):
            read(path)
    beside.write_bytes(b'{"network": ' + b'{"a":' * 900 + b"1" + b"}" * 901)
    with pytest.raises(UserError, match="too deep"):
        read(path)
    beside.write_bytes(b" " * (checkpoints.MAX_DESCRIPTION + 1))
    with pytest.raises(UserError, match="larger than any description"):
        read(path)
    beside.write_text(json.dumps({"network": TINY, "training": {"images": 7}}))
    file = read(path)
    assert file.config == TINY
    assert file.record == {"images": 7}
    load_into(EDMPrecond(**file.config), file)
    data = path.read_bytes()
    for cut in (0, 5, 100, len(data) - 1):
        write(tmp_path, data[:cut], path.name)
        with pytest.raises(UserError, match="damaged or incomplete"):
            read(path)
    flip(data, 100, lambda changed: read(write(tmp_path, changed, path.name)))


def header(tensors: object, length: int | None = None) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(shape: list, start: int, end: int, dtype: object = "F32") -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header(b"{}", 1 << 63),
        header(b"{}", (1 << 64) - 1),
        header(b"{}", 100),
        header(b"{}"),
        header(b"[" * 100_000),
        header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
        header(b"\xff\xfe"),
        header([1]),
        header(entry([1 << 40], 0, 4)) + bytes(4),
        header(entry([1 << 40], 0, 1 << 42)) + bytes(4),
        header(entry([1 << 62, 4], 0, 4)) + bytes(4),
        header(entry([-1], 0, 4)) + bytes(4),
        header(entry([1], 4, 0)) + bytes(4),
        header(entry([1], 0, 4, "F99")) + bytes(4),
        header(entry([1], 0, 4, 7)) + bytes(4),
        header(entry([0, 1 << 40], 0, 0)),
        header(entry([1], 0, 4) | {"b": entry([1], 0, 4)["a"]}) + bytes(4),
        header(b" " * 10_000_001),
    ],
)
def test_headers_of_safetensors_that_lie(tmp_path, data):
    """Refused before memory is taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = write(tmp_path, data, "net.safetensors")
    with pytest.raises(UserError) as caught:
        load_into(nn.Linear(1, 1), read(path))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_safetensors_with_wrappers_and_averages(tmp_path):
    own = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.ones(2)}
    path = tmp_path / "net.safetensors"
    for prefix in ("", "module.", "model.", "_orig_mod.", "ema_model."):
        save_file({prefix + name: value for name, value in own.items()}, path)
        assert read(path).state.keys() == own.keys()
    raw = {f"model.{name}": torch.zeros_like(value) for name, value in own.items()}
    save_file(raw | {f"model_ema.{name}": value for name, value in own.items()}, path)
    assert all(torch.equal(read(path).state[name], own[name]) for name in own)
    save_file(raw | {"ema.conv.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match="averaged weights"):
        read(path)
    # A JSON that other programs put beside a file is no description of ours.
    save_file(own, path)
    (tmp_path / "net.json").write_text("[1]")
    assert read(path).config == {}


# --- fitting and finding -------------------------------------------------------------------------


def test_load_into_says_what_does_not_fit():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {"0.weight": torch.zeros(2, 3), "0.bias": torch.tensor([0.0, torch.nan])}
    state |= {f"x{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(UserError) as caught:
        load_into(net, Checkpoint({}, state, "", Path("a.pkl")))
    text = str(caught.value)
    assert text == (
        "a.pkl does not fit this network; missing: 1.weight, 1.bias; unexpected: x0, x1, x2 and 6 "
        "more; of another shape: 0.weight [2, 3], not [2, 2]; not finite: 0.bias"
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_locate(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, b"", "a.safetensors")
    assert locate("bundled:a.safetensors") == path == locate(str(path))
    assert locate("~/a.safetensors") == path
    (tmp_path / "z").mkdir()
    assert locate("bundled:z") == tmp_path / "z"
    wrong = [
        "bundled:b",
        f"bundled:../{tmp_path.name}/a.safetensors",
        "https://x/y.pkl",
        "a\0",
        "~~/",
    ]
    for name in [*wrong, "a" * 5000]:
        with pytest.raises(UserError, match=r"known: a\.safetensors|nothing is at"):
            locate(name)


def test_what_is_no_checkpoint_is_named(tmp_path):
    assert "empty" in refusal(tmp_path, b"")
    assert "a web page" in refusal(tmp_path, b"\n<!DOCTYPE html><html>")
    assert "a zip archive" in refusal(tmp_path, b"PK\x03\x04" + bytes(40))
    assert "not a pickle" in refusal(tmp_path, b"(lp0\nI1\na.")
    assert "holds list" in refusal(tmp_path, dump([1]))
    assert "the entries G, D, G_ema and 1 more" in refusal(
        tmp_path, dump(dict(G=1, D=2, G_ema=3, x=4))
    )
    assert "'ema' is of type dict" in refusal(tmp_path, dump(dict(ema={})))
    top = Persistent("VPPrecond", {})
    assert "VPPrecond is not supported" in refusal(tmp_path, dump(dict(ema=top)))
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    assert "no EDM checkpoint" in refusal(tmp_path, buffer.getvalue())
    for path in (tmp_path / "net.ckpt", tmp_path / "missing.pkl", tmp_path):
        with pytest.raises(UserError):
            read(path)
    (tmp_path / "folder.pkl").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "folder.pkl")
