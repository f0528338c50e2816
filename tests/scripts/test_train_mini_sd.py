"""Training a small Stable Diffusion: it learns, resumes, and writes what the reader reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf

from bdia_exp.models import Text
from bdia_exp.models.stable_diffusion import load

from .test_scripts import SCRIPTS, script

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
BLOCKS = {"block_out_channels": [8, 8], "norm_num_groups": 4}
NETWORK = {
    "vae": {**BLOCKS, "sample_size": 8, "down_block_types": ["DownEncoderBlock2D"] * 2}
    | {"up_block_types": ["UpDecoderBlock2D"] * 2},
    "text_encoder": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    "unet": {**BLOCKS, "sample_size": 4, "cross_attention_dim": 8},
}
SHORT = {"kimg": 0.64, "batch": 32, "warmup_kimg": 0.1, "ema_halflife_kimg": 0.05}


@pytest.fixture(scope="module")
def module():
    return script("train_mini_sd")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """8×8 images that are red or blue, as their captions say."""
    folder = tmp_path_factory.mktemp("data")
    images = np.zeros((64, 8, 8, 3), np.uint8)
    images[::2, ..., 0] = images[1::2, ..., 2] = 220
    captions = np.array([["red", "a red box"], ["blue", "a blue box"]] * 32)
    np.savez(folder / "train.npz", images=images, captions=captions)
    script("captions").write_tokenizer(folder / "tokenizer", captions)
    settings = OmegaConf.load(SCRIPTS.parent / "configs/training/mini_sd.yaml")
    changes = {"data": str(folder), "network": NETWORK, "save_seconds": -1}
    changes |= {"autoencoder": SHORT, "diffusion": SHORT}
    OmegaConf.save(OmegaConf.merge(settings, changes), folder / "config.yaml")
    return str(folder / "config.yaml")


def train(module, config: str, out: Path, *more: str):
    return CliRunner().invoke(module.main, ["--config", config, f"out={out}", *more])


@pytest.fixture(scope="module")
def whole(module, config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    done = train(module, config, out)
    assert done.exit_code == 0, done.output
    return out


def test_it_learns_and_writes_what_the_reader_reads(whole):
    about = json.loads((whole / "mini_sd.json").read_text())["training"]
    for stage in ("autoencoder", "diffusion"):
        losses = [loss for _, loss in about[stage]["loss"]]
        assert len(losses) == 20
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3]), stage
        assert about[stage]["images_seen"] == 640
    model = load(str(whole / "mini_sd"))
    assert model.image_shape == (3, 8, 8)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = images[1, 2] = 220
    z = model.encode(images)
    assert z.mean().abs() < 0.3
    assert z.mean() != 0
    found = model.denoiser(Text(["red", "blue"], 2.0))(torch.randn_like(z), model.schedule(900))
    assert found.eps.isfinite().all()
    assert not torch.equal(*model.embed(["red", "blue"]))
    assert model.warn_of_cut(["a red box"]) == 0


def test_a_new_training_starts_from_the_weights_of_an_old_one(module, config, whole, tmp_path):
    more = (f"init={whole / 'mini_sd'}", "autoencoder.kimg=0", "diffusion.kimg=0.032")
    done = train(module, config, tmp_path, *more)
    assert done.exit_code == 0, done.output
    before, after = (load(str(out / "mini_sd")) for out in (whole, tmp_path))
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert torch.allclose(before.pixels(before.encode(x)), after.pixels(after.encode(x)), atol=0.01)
    for part in ("unet", "text_encoder"):
        old, new = (dict(model.parts[part].named_parameters()) for model in (before, after))
        changes = [(old[name] - new[name]).abs().max().item() for name in old]
        assert 0 < max(changes) < 0.002, part
    about = json.loads((tmp_path / "mini_sd.json").read_text())["training"]
    assert about["autoencoder"]["images_seen"] == 0
    assert about["diffusion"]["images_seen"] == 32


def test_a_stopped_training_goes_on_to_the_same_weights(
    module, config, whole, tmp_path, monkeypatch
):
    saves = []

    def stop_sometimes(stage, save=module.Stage.save):
        save(stage)
        saves.append(stage.seen)
        if len(saves) in (7, 27):  # once in each stage
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Stage, "save", stop_sometimes)
    for _ in range(3):
        assert not (tmp_path / "mini_sd").exists()
        train(module, config, tmp_path)
    files = [file.relative_to(whole) for file in (whole / "mini_sd").rglob("*") if file.is_file()]
    assert len(files) == 11
    for file in files:
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file


def test_standardised_latents_make_the_same_images(module, config):
    torch.manual_seed(1)
    vae = module.build("vae", OmegaConf.load(config).network.vae).eval().requires_grad_(False)
    x = torch.rand(16, 3, 8, 8) * 2 - 1
    before = vae.encode(x).latent_dist
    images = vae.decode(before.mean).sample
    mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    module.standardise(vae, mean, std)
    after = vae.encode(x).latent_dist
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(after.std, before.std / std.view(1, -1, 1, 1), rtol=1e-3)
    assert torch.allclose(vae.decode(after.mean).sample, images, atol=1e-3)
