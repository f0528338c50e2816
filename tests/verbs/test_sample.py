"""The main job on the bundled model: reproducible, resumable, the same for every batch size."""

import json
import os
import re
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from bdia_exp.cli.configs import call, settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.jobs.gammas import full_name
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.edm import EDM
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.verbs import verb
from tests.verbs.running import QUICK, pngs, sample


def test_rex_draws_its_brownian_paths_from_the_seeds_of_its_images(tmp_path):
    words = ("sampler=rex", "sampler.predicts=data", "sampler.sde=em", "nfe=6", "save=zip")
    sample(tmp_path / "whole", "images=3", *words)
    sample(tmp_path / "parts", "images=3", *words, "batch=2")
    sample(tmp_path / "one", "seeds=2", *words)
    whole, parts, one = (ImageSet(tmp_path / name) for name in ("whole", "parts", "one"))
    assert torch.equal(whole.read(range(3)), parts.read(range(3)))
    assert torch.equal(whole.read([2]), one.read([0]))


def test_a_stochastic_sampler_draws_from_the_seeds_of_its_images(tmp_path):
    """Its noise, too, is of the seed alone: not of the batch, nor of the images beside it."""
    churn = ("sampler=edm_churn", "nfe=5", "save=zip")
    sample(tmp_path / "whole", "images=5", *churn)
    sample(tmp_path / "parts", "images=5", *churn, "batch=2")
    sample(tmp_path / "one", "seeds=3", *churn)
    whole, parts, one = (ImageSet(tmp_path / name) for name in ("whole", "parts", "one"))
    assert torch.equal(whole.read(range(5)), parts.read(range(5)))
    assert torch.equal(whole.read([3]), one.read([0]))
    sample(tmp_path / "calm", "images=5", *churn, "sampler.S_churn=0.0")
    assert not torch.equal(whole.read(range(5)), ImageSet(tmp_path / "calm").read(range(5)))


def test_record_says_what_was_run(whole):
    record = json.loads((whole / "record.json").read_text())
    assert record["complete"]
    assert record["nfe"] == 3
    assert record["images"] == record["sampled"] == 40
    assert record["identity"]["seeds"] == "0-39"
    assert len(record["model"]["sha256"]) == 64
    assert record["config"]["sampler"]["gamma"] == 1.0
    assert record["images_per_second"] > 0
    assert {"torch", "python", "bdia-exp"} <= record["versions"].keys()
    assert "commit" in record
    assert (whole / "sheet.png").exists()
    assert (whole / "config.yaml").exists()
    labels = dict(json.loads((whole / "images/dataset.json").read_text())["labels"])
    rng = torch.Generator().manual_seed(17)
    torch.randn(1, 32, 32, generator=rng)
    assert labels["000000/000017.png"] == int(torch.randint(10, (), generator=rng))


def test_a_default_folder_has_gamma_in_its_name_and_earlier_names_are_found(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["nfe=1", "images=1", "device=cpu", "sampler=bdia_ddim", "sampler.gamma=0.5"]
    record = call("sample", words)
    assert record["gamma"] == [0.5]
    (folder,) = (tmp_path / "runs/fashion_mini").iterdir()
    assert re.fullmatch(r"bdia_ddim-gamma0\.5-nfe1-[0-9a-f]{8}", folder.name)
    assert "1 images, bdia_ddim-gamma0.5, nfe 1" in capsys.readouterr().out
    folder.rename(folder.with_name(folder.name.replace("-gamma0.5", "")))
    call("sample", words)
    assert "is complete: nothing to do" in capsys.readouterr().out
    assert len([*(tmp_path / "runs/fashion_mini").iterdir()]) == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["sampler=ddim"], "ddim"),
        (["sampler=leapfrog"], "leapfrog"),
        (["sampler=cbdia"], "cbdia-gamma0.04,0.96"),
        (["sampler=bdia_edm", "sampler.gamma=0.123456789"], "bdia_edm-gamma0.123457"),
    ],
)
def test_the_name_of_a_sampler_has_every_gamma(words, name):
    assert full_name(settings("sample", words).sampler) == name


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_size_does_not_change_an_image(whole, tmp_path, batch):
    sample(tmp_path, "seeds=0-8,39", f"batch={batch}")
    mine, all_of_them = pngs(tmp_path), pngs(whole)
    assert len(mine) == 10
    assert all(all_of_them[name] == data for name, data in mine.items())


def test_what_is_complete_is_not_done_again(whole):
    before = (whole / "record.json").stat().st_mtime_ns
    sample(whole, "images=40")
    assert (whole / "record.json").stat().st_mtime_ns == before


def refused(device: str = "cpu", dtype: str = "auto"):
    raise AssertionError("nothing is loaded for a run that is complete")


def test_a_complete_run_is_found_before_anything_is_loaded(whole, tmp_path):
    """No network, no Inception, no reference set: the record and the files' hashes are enough."""
    words = [*QUICK, "images=70", "score=true", f"out={tmp_path}"]
    record = call("sample", words)
    asked = settings("sample", words)
    nothing = {
        "model": Choice("fashion_mini", asked.model.config, refused),
        "features": Choice("bundled", asked.features.config, refused),
    }
    before = (tmp_path / "record.json").stat().st_mtime_ns
    assert verb("sample").function(replace(asked, **nothing)) == record
    assert (tmp_path / "record.json").stat().st_mtime_ns == before
    other = replace(asked, **nothing, nfe=5)
    with pytest.raises(UserError, match="nfe was 3, now 5"):
        verb("sample").function(other)


def test_another_experiment_in_the_same_folder_is_refused(whole):
    with pytest.raises(UserError, match=r"sampler.gamma was 1.0, now 0.5.*choose another out="):
        sample(whole, "images=40", "sampler.gamma=0.5")


def test_zip_holds_the_same_images(whole, tmp_path):
    from bdia_exp.store.image_sets import ImageSet

    sample(tmp_path, "images=40", "save=zip")
    assert not (tmp_path / "images").exists()
    zipped, folder = ImageSet(tmp_path), ImageSet(whole)
    assert torch.equal(zipped.read(range(40)), folder.read(range(40)))
    assert zipped.labels == folder.labels
    sample(tmp_path, "images=40", "save=zip")  # again: nothing to do


def test_scratch_images_stay_until_the_run_is_complete(whole, tmp_path, monkeypatch):
    """A killed run that keeps nothing in the end still goes on where it was."""
    drawn, real = [], Job.sample

    def sample_two_batches(job, seeds, step):
        drawn.append(seeds)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(job, seeds, step)

    monkeypatch.setattr(Job, "sample", sample_two_batches)
    words = ["images=80", "save=scratch", "score=true"]
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, *words)
    assert len(pngs(tmp_path)) == 32
    assert all(pngs(whole)[name] == data for name, data in pngs(tmp_path).items())
    record = sample(tmp_path, *words)
    assert (record["sampled"], len(drawn)) == (48, 6)
    assert not (tmp_path / "images").exists()
    assert record["score"]["images"] == 80
    sample(tmp_path, *words)  # complete: nothing to do
    assert len(drawn) == 6


@pytest.mark.quick
def test_class_makes_every_image_of_that_class(tmp_path):
    sample(tmp_path, "images=3", "class=7")
    labels = json.loads((tmp_path / "images/dataset.json").read_text())["labels"]
    assert [label for _, label in labels] == [7, 7, 7]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    """model=edm_cifar10 promises a network; a file that holds another is not sampled from."""
    bundled = "model.checkpoint=bundled:fashion_mini.safetensors"
    with pytest.raises(UserError, match=r"not the network that model= promises.*is 1, not 3"):
        sample(tmp_path, "model=edm_cifar10", bundled, "images=1")
    assert not list(tmp_path.iterdir())


def test_a_label_for_an_unconditional_model_is_refused(tmp_path):
    from safetensors.torch import save_file

    from bdia_exp.models.edm import EDMPrecond

    network = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet"}
    network |= {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    save_file(EDMPrecond(**network).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps({"network": network}))
    words = ["model=edm", f"model.checkpoint={tmp_path / 'net.safetensors'}", "images=1"]
    with pytest.raises(UserError, match="class=3: this model has no classes; leave class= out"):
        sample(tmp_path / "run", *words, "class=3")
    assert sample(tmp_path / "run", *words)["complete"]


def test_half_precision_draws_the_same_pictures(whole, tmp_path):
    from bdia_exp.store.image_sets import ImageSet

    sample(tmp_path, "images=16", "dtype=bfloat16")
    full, half = (ImageSet(root).read(range(16)).float() for root in (whole, tmp_path))
    difference = (full - half).abs().mean()
    assert 0 < difference < 12  # of 255; three evaluations forgive little
    assert full.std() > 40


def test_diverging_sampler_is_said():
    from bdia_exp.samplers.loops import multistep

    asked = settings("sample", ["nfe=9", "grid=karras"])
    beyond = Choice("bdia_ddim", {}, partial(multistep, gamma=1e300))
    job = Job.of(replace(asked, sampler=beyond), "cpu")
    with pytest.raises(UserError, match=r"diverged.*use more nfe="):
        job.sample([0, 1], lambda: None)


@pytest.mark.skipif(
    os.environ.get("CI_NO_GPU") == "1" or not torch.cuda.is_available(), reason="no GPU"
)
def test_cuda_images_are_those_of_the_cpu(whole, tmp_path):
    """The same noise on every device; only rounding differs."""
    sample(tmp_path, "images=16", "device=cuda")
    from bdia_exp.store.image_sets import ImageSet

    cpu, gpu = (ImageSet(root).read(range(16)).int() for root in (whole, tmp_path))
    assert (cpu - gpu).abs().max() <= 2


def test_a_pickle_gives_the_images_of_its_safetensors(whole, tmp_path):
    """The bundled network written as an EDM .pkl goes through the same loader and sampler."""
    from bdia_exp.models.edm import EDMPrecond
    from bdia_exp.sources.checkpoints import load_into, locate, read
    from tests.sources.pickled import dump, persistent

    file = read(locate("bundled:fashion_mini.safetensors"))
    net = EDMPrecond(**file.config).eval().requires_grad_(False)
    load_into(net, file)
    (tmp_path / "net.pkl").write_bytes(dump({"ema": persistent(net, _init_kwargs=file.config)}))
    words = ["model=edm", f"model.checkpoint={tmp_path / 'net.pkl'}", "seeds=0-8,39"]
    record = sample(tmp_path / "run", *words)
    assert record["model"]["parameters"] == sum(p.numel() for p in net.parameters())
    mine, all_of_them = pngs(tmp_path / "run"), pngs(whole)
    assert len(mine) == 10
    assert all(all_of_them[name] == data for name, data in mine.items())


def test_the_bundled_model_draws_what_it_is_asked_for(tmp_path):
    """Label accuracy and FID of few images at few evaluations: far below the model's own figures,
    far above what a broken network, grid or preconditioner would give."""
    words = ["sampler=edm", "nfe=19", "images=96", "batch=48", "score=true", "save=none"]
    score = sample(tmp_path, *words)["score"]
    assert score["label_accuracy"] > 0.7
    assert score["fid"] < 8  # noise has 90


def test_a_gpu_that_is_too_small_names_the_batch_to_ask_for(tmp_path, monkeypatch):
    def full(self, seeds, step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Job, "sample", full)
    with pytest.raises(UserError, match=r"too small for 6 images at a time: give batch=3"):
        sample(tmp_path, "model=toy", "sampler=ddim", "nfe=1", "images=6", "batch=6")


@pytest.mark.parametrize(("threads", "where"), [(1, "decode_0"), (2, "MainThread")])
def test_images_are_decoded_where_no_other_thread_computes(threads, where, tmp_path, monkeypatch):
    """Sampling on several cores is slowed down by a second thread that uses several, too."""
    seen, decode = [], EDM.decode

    def told(model, z):
        seen.append(threading.current_thread().name)
        return decode(model, z)

    monkeypatch.setattr(EDM, "decode", told)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sample(tmp_path, "images=3", "nfe=1")
    assert seen == [where]
