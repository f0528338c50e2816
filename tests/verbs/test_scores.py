"""evaluate, reference, and scores while sampling."""

import subprocess
import sys

import numpy as np
import pytest

from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.metrics.moments import Statistics
from tests.verbs.running import sample


def test_scoring_while_sampling_equals_scoring_the_files(tmp_path):
    streamed = sample(tmp_path / "none", "images=70", "score=true", "save=none")
    assert not (tmp_path / "none/images").exists()
    sample(tmp_path / "files", "images=70")
    written = call("evaluate", [f"images='{tmp_path / 'files'}'"])
    assert written["score"]["fid"] == pytest.approx(streamed["score"]["fid"], rel=1e-9)
    assert written["score"]["label_accuracy"] == streamed["score"]["label_accuracy"]
    assert "not comparable with Inception" in written["score"]["note"]
    assert (tmp_path / "files/score-bundled.json").exists()


def test_reference_of_a_run_and_every_metric_against_it(whole, tmp_path):
    """`reference` writes what `evaluate` and `sample` score against, in one process or in two,
    one of which has no images."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (1100, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=array)
    words = [f"images={tmp_path / 'real.npz'}", "keep=true", "device=cpu"]
    call("reference", [*words, "batch=100", f"out={tmp_path / 'one'}"])
    command = [sys.executable, "-m", "bdia_exp", "reference", *words, f"out={tmp_path / 'two'}"]
    command += ["batch=2000", "-p", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
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


def test_too_few_images_is_said(tmp_path):
    with pytest.raises(UserError, match="at least 65 images; there are 20"):
        sample(tmp_path, "images=20", "score=true", "save=none")
    assert not list(tmp_path.iterdir())


def test_seeds_of_unequal_blocks_have_a_score_without_an_interval(tmp_path):
    words = ["model=toy", "sampler=ddim", "nfe=1", "score=true", "save=none"]
    seeds = ",".join(map(str, range(0, 1800, 20)))
    assert "fid_without_block" not in sample(tmp_path / "a", *words, f"seeds='{seeds}'")["score"]
    assert "fid_without_block" in sample(tmp_path / "b", *words, "images=90")["score"]
