"""Folders of Stable Diffusion whose weights are in several files, as the libraries write them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bdia_exp.models.stable_diffusion import load
from bdia_exp.sources import checkpoints
from tests.models.tiny_sd import edit, refusal, same, tiny, write_json

pytestmark = pytest.mark.usefixtures("stable_diffusion")


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory) -> Path:
    root = Path(shutil.copytree(folder, tmp_path_factory.mktemp("shards") / "sd"))
    for part, net in tiny().parts.items():
        next((root / part).glob("*.safetensors")).unlink()
        net.save_pretrained(root / part, max_shard_size="300KB")
        assert len([*(root / part).glob("*-of-*.safetensors")]) > 1
    return root


@pytest.fixture
def copy(shards, tmp_path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def as_bin(folder: Path) -> None:
    """As older folders have them."""
    for file in folder.rglob("*.safetensors"):
        name = file.with_suffix(".bin").name
        name = f"pytorch_{name}" if name.startswith("model") else name
        torch.save(load_file(file), file.with_name(name))
        file.unlink()
    for index in folder.rglob("*.safetensors.index.json"):
        found = json.loads(index.read_text())
        names = {old.replace(".safetensors", ".bin") for old in found["weight_map"].values()}
        if index.name.startswith("model"):
            names = {f"pytorch_{name}" for name in names}
        found["weight_map"] = {str(number): name for number, name in enumerate(names)}
        name = "diffusion_pytorch_model" if "diffusion" in index.name else "pytorch_model"
        write_json(index.with_name(f"{name}.bin.index.json"), found)
        index.unlink()


def test_they_are_the_network_in_one_file(shards, copy):
    found = load(str(shards))
    assert same(found, tiny())
    assert found.provenance["sha256"] == checkpoints.sha256(shards)
    as_bin(copy)
    assert {file.name for file in copy.glob("text_encoder/*.json")} == {
        *("config.json", "pytorch_model.bin.index.json")
    }
    assert same(load(str(copy)), tiny())


def test_every_one_decides_the_identity(copy):
    """The sha256 of a folder with one file per network is as it was: tests/sources/test_hub.py."""
    for part in ("unet", "vae", "text_encoder"):
        for file in sorted((copy / part).glob("*-of-*.safetensors")):
            before = checkpoints.sha256(copy), checkpoints.sha256(copy / part)
            state = load_file(file)
            save_file({name: tensor + 1 for name, tensor in state.items()}, file)
            after = checkpoints.sha256(copy), checkpoints.sha256(copy / part)
            assert before[0] != after[0]
            assert before[1] != after[1]


def test_a_missing_one_is_named(copy):
    missing = sorted((copy / "unet").glob("*-of-*.safetensors"))[1]
    missing.unlink()
    with refusal(f"unet lacks {missing.name}, which .*index.json names: fetch the folder again"):
        load(str(copy))


def test_a_tensor_in_two_of_them(copy):
    first, second, *_ = sorted((copy / "vae").glob("*-of-*.safetensors"))
    save_file(load_file(first) | load_file(second), first)
    with refusal("vae: more than one of its files has "):
        load(str(copy))


MAPS = [[], "x", {}, None, {"a": 3}, {"a": "../unet/x.safetensors"}, {"a": "/etc/passwd"}]
MAPS += [{"a": "config.json"}, {"a": ["x"]}, {"a": "x.bin"}]


@pytest.mark.parametrize("given", MAPS)
def test_a_damaged_index(copy, given):
    edit(next((copy / "unet").glob("*.index.json")), weight_map=given)
    with refusal("index.json is damaged, it should be .*: fetch it again"):
        load(str(copy))


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\x80", b"[1]", b"Infinity"])
def test_an_index_that_is_no_json(copy, text):
    next((copy / "unet").glob("*.index.json")).write_bytes(text)
    with refusal("index.json is damaged, it should be .*: fetch it again"):
        load(str(copy))
