"""The main job on the bundled model: reproducible, resumable, the same on any number of ranks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from bdia_exp.cli.configs import call, expand, settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.metrics.moments import Statistics
from bdia_exp.store.images import ImageSet
from bdia_exp.verbs import verb
from bdia_exp.verbs.fetch import fetch
from tests import asking

QUICK = ["nfe=3", "device=cpu", "batch=16"]


def sample(out: Path, *overrides: str) -> dict:
    (words,) = expand("sample", (*QUICK, f"out={out}", *overrides), multirun=False)
    return call("sample", words)


def pngs(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("images/**/*.png"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of 40 images, the one that every other run must equal."""
    root = tmp_path_factory.mktemp("whole")
    sample(root, "images=40")
    return root


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


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_size_does_not_change_an_image(whole, tmp_path, batch):
    sample(tmp_path, "seeds=0-8,39", f"batch={batch}")
    mine, all_of_them = pngs(tmp_path), pngs(whole)
    assert len(mine) == 10
    assert all(all_of_them[name] == data for name, data in mine.items())


def test_torchrun_gives_the_same_images_and_fid(whole, tmp_path):
    score = ["score=true", "images=150"]
    one = sample(tmp_path / "one", *score)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "bdia_exp", "sample"]
    command += [*QUICK, *score, f"out={tmp_path / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two/record.json").read_text())
    assert two["processes"] == 2
    assert two["sampled"] == 150
    assert pngs(tmp_path / "two") == pngs(tmp_path / "one")
    assert two["score"]["fid"] == pytest.approx(one["score"]["fid"], rel=1e-9)
    assert two["score"]["label_accuracy"] == one["score"]["label_accuracy"]
    assert (tmp_path / "two/sheet.png").read_bytes() == (tmp_path / "one/sheet.png").read_bytes()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_run_again_gives_the_same_bytes(whole, tmp_path, stop):
    words = [*QUICK, "images=40", "batch=4", f"out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bdia_exp", "sample", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Under nohup or in the background of a script we would inherit a SIGINT that is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 120
    while len(list(tmp_path.rglob("*.png"))) < 5 and time.time() < deadline:  # in batch 2 of 10
        time.sleep(0.002)
    process.send_signal(stop)
    process.wait(60)
    assert not json.loads((tmp_path / "record.json").read_text())["complete"]
    assert 0 < len(pngs(tmp_path)) < 40
    if stop == signal.SIGINT:
        assert process.returncode == 130
    sample(tmp_path, "images=40", "batch=4")
    assert pngs(tmp_path) == pngs(whole)
    assert (tmp_path / "sheet.png").read_bytes() == (whole / "sheet.png").read_bytes()
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["complete"]
    assert 0 < record["sampled"] < 40


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
    from bdia_exp.store.images import ImageSet

    sample(tmp_path, "images=40", "save=zip")
    assert not (tmp_path / "images").exists()
    zipped, folder = ImageSet(tmp_path), ImageSet(whole)
    assert torch.equal(zipped.read(range(40)), folder.read(range(40)))
    assert zipped.labels == folder.labels
    sample(tmp_path, "images=40", "save=zip")  # again: nothing to do


def test_scratch_images_stay_until_the_run_is_complete(whole, tmp_path, monkeypatch):
    """A killed run that keeps nothing in the end still goes on where it was."""
    from bdia_exp.jobs.sampling import Job

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


def test_class_makes_every_image_of_that_class(tmp_path):
    sample(tmp_path, "images=3", "class=7")
    labels = json.loads((tmp_path / "images/dataset.json").read_text())["labels"]
    assert [label for _, label in labels] == [7, 7, 7]


def test_scoring_while_sampling_equals_scoring_the_files(tmp_path):
    streamed = sample(tmp_path / "none", "images=150", "score=true", "save=none")
    assert not (tmp_path / "none/images").exists()
    sample(tmp_path / "files", "images=150")
    written = call("evaluate", [f"images='{tmp_path / 'files'}'"])
    assert written["score"]["fid"] == pytest.approx(streamed["score"]["fid"], rel=1e-9)
    assert written["score"]["label_accuracy"] == streamed["score"]["label_accuracy"]
    assert "not comparable with Inception" in written["score"]["note"]
    assert (tmp_path / "files/score-bundled.json").exists()


def test_a_process_without_images_takes_part(tmp_path):
    """One batch for two processes: both count, score and finish."""
    words = ["score=true", "images=70", "metrics=[isc]", "nfe=3", "device=cpu", "save=none"]
    command = [sys.executable, "-m", "bdia_exp", "sample", "batch=70", *words]
    scores = []
    for processes in ("1", "2"):
        more = ["-p", processes, f"out={tmp_path / processes}"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        scores.append(json.loads((tmp_path / processes / "record.json").read_text())["score"])
    assert scores[0]["label_accuracy"] == scores[1]["label_accuracy"] > 0
    assert scores[0]["isc"] == scores[1]["isc"]
    assert scores[0]["fid"] == pytest.approx(scores[1]["fid"], rel=1e-9)


def test_processes_started_by_ourselves_give_the_same(whole, tmp_path):
    words = [*QUICK, "images=40", f"out={tmp_path / 'x'}"]
    command = [sys.executable, "-m", "bdia_exp", "sample", "-p", "2"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pngs(tmp_path / "x") == pngs(whole)
    assert json.loads((tmp_path / "x/record.json").read_text())["processes"] == 2
    assert done.stdout.count("40 images") == 1
    # Several runs in a row, as --multirun has them, meet each other again.
    again = [*command, "-m", *QUICK[1:], "nfe=1,3", "images=2", f"out={tmp_path}/${{nfe}}"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("nfe=3 images=2") == 1
    assert pngs(tmp_path / "3").items() <= pngs(whole).items()
    # A user's mistake is said once, by one of them, and nothing is said about the others.
    wrong = subprocess.run(
        [*command, "nfe=4", f"out={tmp_path / 'y'}"], capture_output=True, text=True, timeout=300
    )
    assert wrong.returncode == 1
    assert wrong.stderr == "Error: nfe=4 is not possible with this sampler: choose 3 or 5\n"


def test_reference_of_a_run_and_every_metric_against_it(whole, tmp_path):
    """`reference` writes what `evaluate` and `sample` score against, in one process or in two,
    one of which has no images."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (1100, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=array)
    command = [sys.executable, "-m", "bdia_exp", "reference", str(tmp_path / "real.npz")]
    for name, extra in {"one": ["batch=100"], "two": ["batch=2000", "-p", "2"]}.items():
        words = ["keep=true", "device=cpu", f"out={tmp_path / name}", *extra]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (Statistics.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert one.count == two.count == 1100
    assert np.array_equal(one.features, two.features)
    assert np.allclose(one.cov, two.cov, rtol=1e-12)
    assert one.meta["features"] == "fashion_features"
    assert one.meta["images"].endswith("real.npz")
    assert {"commit", "versions", "sha256"} <= one.meta.keys()

    def evaluate(reference: str) -> dict:
        words = [f"images='{tmp_path / 'real.npz'}'", f"reference='{tmp_path / reference}'"]
        words += ["metrics=[fid,kid,prc,isc]", "limit=1000"]
        return call("evaluate", words)["score"]

    against_statistics, against_images = evaluate("one.npz"), evaluate("real.npz")
    assert against_statistics["precision"] == 1  # every image is one of the real ones
    assert against_statistics["kid"] < 1e-3
    for key in ("fid", "kid", "precision", "recall", "isc"):
        assert against_images[key] == pytest.approx(against_statistics[key], rel=1e-5, abs=1e-8)
    words = ["images=70", "score=true", "save=none", f"reference={tmp_path / 'one.npz'}"]
    score = sample(tmp_path / "run", *words, "metrics=[prc]")["score"]
    assert {"fid", "precision", "recall"} <= score.keys()
    assert score["fid"] > 10
    with pytest.raises(UserError, match=r"subsets of 1,000 images; there are 70"):
        sample(tmp_path / "few", *words, "metrics=[kid]")
    assert not (tmp_path / "few").exists()
    few = [f"images='{tmp_path / 'real.npz'}'", "out=x", "limit=64"]
    with pytest.raises(UserError, match="at least 65 images; there are 64"):
        call("reference", few)
    with pytest.raises(UserError, match="limit=1101 must be 1 to 1100"):
        call("reference", [f"images='{tmp_path / 'real.npz'}'", "out=x", "limit=1101"])


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


def test_fetch_brings_what_it_can_and_names_the_rest(tmp_path, monkeypatch, capsys):
    """From a mirror that is a folder of this machine, served on 127.0.0.1."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "BDIA_EXP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/edm-fid-ref-cifar10-32x32.npz").write_bytes(b"statistics")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("BDIA_EXP_MIRROR", f"http://127.0.0.1:{server.server_port}")
        given = settings("fetch", ["what=edm_cifar10"])
        listing = {
            "edm_cifar10": {
                "checkpoint": "fetch:edm-cifar10-32x32-cond-vp.pkl",
                "reference": "fetch:edm-fid-ref-cifar10-32x32.npz",
            }
        }
        with pytest.raises(UserError, match=r"cond-vp\.pkl answered 404"):
            fetch(given, listing)
        server.shutdown()
    assert "edm-fid-ref-cifar10-32x32.npz: 10 bytes" in capsys.readouterr().out
    assert (tmp_path / "cache/edm-fid-ref-cifar10-32x32.npz").read_bytes() == b"statistics"


def test_coco_is_two_files(tmp_path, monkeypatch):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"(?s)annotations_trainval2014\.zip is .*\n  val2014\.zip is"
    ):
        fetch(settings("fetch", ["what=coco_val2014"]), {})


def test_evaluate_against_images(tmp_path):
    """FID of a set against itself is zero; against another it is not."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        array = rng.integers(0, 256 if name == "a" else 128, (200, 32, 32), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=array)

    def score(images: str, reference: str, *more: str) -> dict:
        words = [f"images='{tmp_path / images}'", f"reference='{tmp_path / reference}'", *more]
        return call("evaluate", words)["score"]

    def fid(images: str, reference: str) -> float:
        return score(images, reference)["fid"]

    assert fid("a.npz", "a.npz") == pytest.approx(0, abs=1e-6)
    assert fid("a.npz", "b.npz") > 1
    assert score("a.npz", "b.npz", "limit=100")["images"] == 100
    with pytest.raises(UserError, match="limit=201 must be 1 to 200"):
        score("a.npz", "b.npz", "limit=201")


def test_half_precision_draws_the_same_pictures(whole, tmp_path):
    from bdia_exp.store.images import ImageSet

    sample(tmp_path, "images=16", "dtype=bfloat16")
    full, half = (ImageSet(root).read(range(16)).float() for root in (whole, tmp_path))
    difference = (full - half).abs().mean()
    assert 0 < difference < 12  # of 255; three evaluations forgive little
    assert full.std() > 40


def test_too_few_images_is_said(tmp_path):
    with pytest.raises(UserError, match="at least 65 images; there are 20"):
        sample(tmp_path, "images=20", "score=true", "save=none")
    assert not list(tmp_path.iterdir())


def test_diverging_sampler_is_said():
    from bdia_exp.jobs.sampling import Job
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
    from bdia_exp.store.images import ImageSet

    cpu, gpu = (ImageSet(root).read(range(16)).int() for root in (whole, tmp_path))
    assert (cpu - gpu).abs().max() <= 2


EXPERIMENT = {
    "name": "tiny",
    "title": "A tiny experiment",
    "images": 140,
    "common": ["model=fashion_mini"],
    "tables": [
        {
            "name": "t",
            "title": "Two samplers",
            "axis": "NFE",
            "rows": {"EDM": ["sampler=edm"], "DDIM": ["sampler=ddim"]},
            "columns": {"3": ["nfe=3"], "5": ["nfe=5"]},
            "published": {"EDM": {"3": 1.5}},
        }
    ],
}


reproduce = partial(asking.reproduce, EXPERIMENT)


def test_reproduce_runs_the_missing_cells_and_draws_the_tables(tmp_path, capsys):
    reproduce(tmp_path, cells="EDM")
    first = {f.parent.name: f.stat().st_mtime_ns for f in tmp_path.rglob("record.json")}
    assert len(first) == 2
    drawn = reproduce(tmp_path)
    assert {f.parent.name: f.stat().st_mtime_ns for f in tmp_path.rglob("record.json")}.items() >= (
        first.items()
    )
    cells = drawn["tables"][0]["cells"]
    assert [(c["row"], c["column"], c["nfe"]) for c in cells] == [
        ("EDM", "3", 3),
        ("EDM", "5", 5),
        ("DDIM", "3", 3),
        ("DDIM", "5", 5),
    ]
    text = (tmp_path / "tables.md").read_text()
    assert f"{cells[0]['fid']:.3f}" in text
    assert f"(published 1.5, {cells[0]['fid'] - 1.5:+.2f})" in text
    assert "not comparable with Inception" in text
    assert text in capsys.readouterr().out
    for name in ("fid.png", "samples.png", "tables.json"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_cell_of_another_experiment_is_not_taken_for_done(tmp_path, capsys):
    reproduce(tmp_path, cells="EDM")
    reproduce(tmp_path, cells="EDM", dry_run=True)
    assert "2 of 2 runs are there, 0 to run" in capsys.readouterr().out
    record = tmp_path / "cells/t-EDM-3/record.json"
    record.write_text(record.read_text().replace('"call": "heun"', '"call": "heun", "gamma": 0.25'))
    with pytest.raises(UserError, match=r"sampler.gamma was 0.25, now the default"):
        reproduce(tmp_path, cells="EDM")


def test_dry_run_runs_nothing(tmp_path, capsys):
    reproduce(tmp_path, dry_run=True)
    assert "4 to run: 2,240 network evaluations" in capsys.readouterr().out
    assert not list(tmp_path.rglob("record.json"))


def test_table_without_records_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run `bdia-exp reproduce tiny` first"):
        asking.table(EXPERIMENT, tmp_path)


def test_a_pickle_gives_the_images_of_its_safetensors(whole, tmp_path):
    """The bundled network written as an EDM .pkl goes through the same loader and sampler."""
    from bdia_exp.models.edm import EDMPrecond
    from bdia_exp.sources.checkpoints import load_into, locate, read
    from tests.sources.edm_pickles import dump, persistent

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


def test_reproduce_in_two_processes_gives_the_numbers_of_one(tmp_path):
    words = ["reproduce", "demo", "limit=70", "cells=at 9", "device=cpu", "batch=16"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    runs = {}
    for name, launcher in (("one", [sys.executable]), ("two", command)):
        whole = [*launcher, "-m", "bdia_exp", *words, f"out={tmp_path / name}"]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("# BDIA's Tables 2 and 3 in miniature") == 1
        drawn = json.loads((tmp_path / name / "tables.json").read_text())
        cells = drawn["tables"][0]["cells"]
        runs[name] = {(c["row"], c["column"]): c["fid"] for c in cells}
    assert list(runs["one"]) == [("EDM", "9"), ("BDIA-EDM γ=1", "9")]
    assert runs["two"] == pytest.approx(runs["one"], rel=1e-9)
