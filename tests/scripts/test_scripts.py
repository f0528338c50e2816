"""The training scripts: they learn, they resume to the same bytes, they read their data."""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf
from safetensors.torch import load_file

from bdia_exp.errors import UserError
from bdia_exp.models.edm import EDMPrecond
from bdia_exp.sources.checkpoints import load_into, read

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny training run: 8×8 images that are dark or bright by class."""
    tmp_path = tmp_path_factory.mktemp("training")
    labels = np.arange(64) % 2
    images = np.full((64, 8, 8, 1), 30, dtype=np.uint8) + 180 * labels[:, None, None, None]
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    settings = OmegaConf.load(SCRIPTS.parent / "configs/training/fashion_mini.yaml")
    network = {"img_resolution": 8, "label_dim": 2, "channel_mult": [1], "attn_resolutions": []}
    network |= {"label_dropout": 0.2}
    changes = {
        "data": str(tmp_path / "data.npz"),
        "body_dtype": "float32",
        "network": network,
        "kimg": 2.56,
        "batch": 32,
        "warmup_kimg": 0.1,
        "ema_halflife_kimg": 0.1,
        "save_seconds": -1,  # after every step
    }
    OmegaConf.save(OmegaConf.merge(settings, changes), tmp_path / "config.yaml")
    return str(tmp_path / "config.yaml")


def train(module, config: str, out: Path, *more: str):
    words = ["--config", config, f"out={out}", *more]
    return CliRunner().invoke(module.main, words, catch_exceptions=True)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The weights of a training that was not stopped."""
    run = tmp_path_factory.mktemp("whole")
    done = train(script("train_edm"), config, run)
    assert done.exit_code == 0, done.output
    return run / "model.safetensors"


def test_training_learns_and_writes_what_the_loader_reads(whole, config, tmp_path):
    file = read(whole)
    losses = [loss for _, loss in file.record["loss"]]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])
    assert file.record["images_seen"] == 2560
    net = EDMPrecond(**file.config).eval()
    load_into(net, file)
    x, labels = torch.zeros(2, 1, 8, 8), torch.eye(2)
    with torch.no_grad():
        dark, bright = net(x + torch.randn(2, 1, 8, 8), 1.0, labels).mean((1, 2, 3))
    assert dark < -0.3 < 0.3 < bright  # −0.76 and 0.65 are the data

    init = f"init={whole}"
    words = [init, "kimg=0.128", "weights_dtype=float16"]
    more = train(script("train_edm"), config, tmp_path / "more", *words)
    assert more.exit_code == 0, more.output
    again = tmp_path / "more/model.safetensors"
    assert {weights.dtype for weights in load_file(again).values()} == {torch.float16}
    further = read(again).record["loss"]
    assert further[0][1] < 0.5 * np.mean(losses[:3])  # it starts where the first run ended


def test_a_stopped_training_goes_on_to_the_same_weights(whole, config, tmp_path, monkeypatch):
    module = script("train_edm")
    saves = []

    def stop_after_20(path, state, save=module.save):
        save(path, state)
        saves.append(path)
        if len(saves) == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "save", stop_after_20)
        train(module, config, tmp_path / "stopped")
    assert not (tmp_path / "stopped/model.safetensors").exists()
    train(module, config, tmp_path / "stopped")
    stopped = tmp_path / "stopped" / "model.safetensors"
    assert stopped.read_bytes() == whole.read_bytes()
    record = json.loads((tmp_path / "stopped/model.json").read_text())
    assert record["training"]["images_seen"] == 2560


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_training_that_ends_while_it_writes_keeps_the_old_file(
    config, tmp_path, monkeypatch, suffix
):
    module, file = script("train_edm"), tmp_path / f"model{suffix}"
    file.write_bytes(b"old")

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    if suffix == ".json":
        monkeypatch.setattr(Path, "write_text", lambda path, *text, **more: half(path))
    else:
        monkeypatch.setattr(module, "save_file", lambda weights, path: half(Path(path)))
    train(module, config, tmp_path, "kimg=0.032")
    assert file.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


def test_idx_files(tmp_path):
    module = script("fashion_mnist")
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.array([3, 9], np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            data = gzip.compress(head + array.tobytes())
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(data)
    words = ["--idx", str(tmp_path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(module.main, words)
    assert done.exit_code == 0, done.output
    test = np.load(tmp_path / "out/test.npz")
    assert test["images"].shape == (2, 32, 32, 1)
    assert np.array_equal(test["images"][:, 2:30, 2:30, 0], images)
    assert test["images"].sum() == images.sum()
    assert test["labels"].tolist() == [3, 9]
    absent = CliRunner().invoke(module.main, ["--idx", str(tmp_path / "absent")])
    assert absent.exit_code == 1
    assert "apt-get install dataset-fashion-mnist" in absent.output


def test_the_table_of_all_samplers_is_what_its_records_say(tmp_path):
    """results/studies/samplers.md is drawn from the records beside it, and from nothing else."""
    studies, root = script("studies"), SCRIPTS.parent / "results" / "studies"
    text = studies.samplers_table(root)
    assert text == (root / "samplers.md").read_text()
    assert "| BDIA-DDIM γ=1 |" in text
    with pytest.raises(UserError, match="`make studies` runs all of them"):
        studies.samplers_table(tmp_path)


def test_the_noise_of_langevin_diffusion_is_drawn_along_an_exact_path(tmp_path):
    langevin = script("langevin")
    times, states, with_r, with_l = langevin.path(200)
    assert (times[0], times[-1]) == (1.0, pytest.approx(1e-3))
    assert states[-1][0] == pytest.approx(-0.92412534, abs=1e-4), "the exact solution"
    for r, l in zip(with_r, with_l, strict=True):
        assert r.norm() == pytest.approx(float(l.norm())), "one is the other, turned"
    langevin.figures.noise_paths(times, states, with_r, with_l, tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 10_000
