"""Training a ControlNet for mini_sd: it begins as no change, learns, resumes, and can be loaded."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bdia_exp.cli.configs import call
from bdia_exp.models.edges import canny
from bdia_exp.models.stable_diffusion import load
from bdia_exp.store.image_sets import ImageSet

from .test_scripts import SCRIPTS, script

pytest.importorskip("diffusers")
pytest.importorskip("cv2")
CONFIG = str(SCRIPTS.parent / "configs/training/mini_controlnet.yaml")
SHORT = ("controlnet.kimg=0.128", "controlnet.batch=16", "controlnet.warmup_kimg=0.016")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Squares of two sizes and colours."""
    folder = tmp_path_factory.mktemp("data")
    images = np.zeros((64, 32, 32, 3), np.uint8)
    images[::2, 8:24, 8:24, 0] = images[1::2, 4:28, 12:20, 2] = 220
    captions = np.array([["a red bag", "red bag"], ["blue trousers", "a pair of blue pants"]] * 32)
    np.savez(folder / "train.npz", images=images, captions=captions)
    return folder


@pytest.fixture(scope="module")
def module():
    return script("train_controlnet")


def train(module, data, out, *more: str):
    words = ["--config", CONFIG, f"data={data}", f"out={out}", "save_seconds=-1", *SHORT, *more]
    return CliRunner().invoke(module.main, words)


@pytest.fixture(scope="module")
def whole(module, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    done = train(module, data, out)
    assert done.exit_code == 0, done.output
    return out


def weights(run) -> dict[str, torch.Tensor]:
    control = {"checkpoint": str(run / "mini_controlnet")}
    return load("bundled:mini_sd", control=control).parts["controlnet"].state_dict()


def test_its_outputs_begin_at_zero_and_then_are_not(module, data, whole):
    """The first loss is that of the U-Net alone; after some steps the ControlNet changes it."""
    found = weights(whole)
    ends = [key for key in found if key.startswith("controlnet_") and key.endswith("weight")]
    assert len(ends) > 3
    assert all(found[key].any() for key in ends)
    about = json.loads((whole / "mini_controlnet.json").read_text())["training"]
    assert about["images_seen"] == 128
    assert about["base"]["checkpoint"] == "mini_sd"
    assert len(about["loss"]) == 8


def test_a_stopped_training_goes_on_to_the_same_weights(module, data, tmp_path):
    constant = "controlnet.decay=1e-9"  # so the rate does not depend on the length
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    runs = ((unbroken, ()), (stopped, ("controlnet.kimg=0.064",)), (stopped, ()))
    for out, more in runs:
        assert train(module, data, out, constant, *more).exit_code == 0
    once, twice = weights(unbroken), weights(stopped)
    assert all(once[key].equal(twice[key]) for key in once)


def test_its_folder_is_a_checkpoint_of_sample(whole, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[6:26, 6:26] = 200
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    words = ["model=mini_sd", "condition=controlnet", "prompt=a red bag", "nfe=2", "images=1"]
    words += [f"model.control.checkpoint={whole / 'mini_controlnet'}", "device=cpu"]
    found = {}
    for scale in (0, 1):
        control = [f"control=auto:canny:{tmp_path / 'picture.png'}", f"model.control.scale={scale}"]
        call("sample", [*words, *control, f"out={tmp_path / str(scale)}"])
        found[scale] = ImageSet(tmp_path / str(scale)).read([0])
    assert not found[0].equal(found[1])


def test_followed_edges_are_measured():
    """Equal images have F1 = 1; an image whose edges are elsewhere has 0."""
    measured = script("controlnet").measured
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = 200
    moved = images.roll(16, 3)
    assert measured(images, images)["f1"] == {"value": 1, "half_width": 0}
    assert measured(moved, images)["f1"]["value"] == 0
    assert measured(images.roll(1, 3), images)["f1"]["value"] > 0.9  # within one pixel
    mixed = measured(torch.cat([images[:2], moved[:1]]), images)["f1"]
    assert abs(mixed["value"] - 2 / 3) < min(mixed["half_width"], 0.01)
    assert canny(images)[:, 0].any()
