"""The scripts of bench/: what they compare and write, on the smallest sizes."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from bdia_exp.models.edm import EDMPrecond

BENCH = Path(__file__).parents[2] / "bench"
NAMES = sorted(file.stem for file in BENCH.glob("*.py"))
TOOLS = {"agreement", "measuring"}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def script(name: str):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TOOLS])
def test_every_script_says_how_it_is_called(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        script(name).main()
    assert f"python bench/{name}.py" in capsys.readouterr().out


def test_times_are_taken_in_turn_and_become_ratios():
    measuring, order = script("measuring"), []
    found = measuring.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert [len(times) for times in found.values()] == [2, 2]
    assert measuring.ratio([2, 4, 9], [1, 2, 3]) == {"ratio": 2, "least": 2, "greatest": 3}


def test_a_report_is_a_table_and_json_with_the_machine(tmp_path, capsys):
    rows = [{"how": "a", "ratio": 1.23456}, {"how": "b", "ratio": None, "more": 3}]
    script("measuring").report("name", rows, tmp_path, words=["x"])
    assert "| a | 1.235 | – |" in capsys.readouterr().out
    found = json.loads((tmp_path / "name.json").read_text())
    assert found["rows"] == rows
    assert found["words"] == ["x"]
    assert {"cpu", "cores", "threads", "gpu", "commit", "versions"} <= found["machine"].keys()


def test_agreement_counts_pixels_and_levels():
    agreement = script("agreement")
    a = torch.zeros(10, 1, 10, 10, dtype=torch.uint8)
    b = a.clone()
    b[0, 0, 0, 0] = 1
    found = agreement.agreement(a, b)
    assert found == {
        "largest difference": 1,
        "mean difference": pytest.approx(1e-3),
        "pixels that differ, %": pytest.approx(0.1),
    }
    assert agreement.agrees(found | {"pixels that differ, %": 0.1})
    b[0, 0, 0, 1] = 255
    assert not agreement.agrees(agreement.agreement(a, b))
    assert agreement.agreement(a, b) == agreement.agreement(b, a)


def test_precision_compares_with_float32_images_of_the_same_seeds(tmp_path):
    words = ["model=fashion_mini", "sampler=edm", "nfe=1", "batch=2", "device=cpu"]
    ways = ["--how", "dtype=float32", "--how", "dtype=bfloat16"]
    script("precision").main(["--images", "3", "--no-score", *ways, "--out", str(tmp_path), *words])
    same, other = json.loads((tmp_path / "precision.json").read_text())["rows"]
    assert same["largest difference"] == 0
    assert other["largest difference"] > 0


def test_overhead_compares_whole_runs_of_a_network_of_colours(tmp_path, monkeypatch):
    """With --full; the network is a small one here."""
    overhead = script("overhead")
    small = overhead.published() | {"model_channels": 16, "channel_mult": [1], "num_blocks": 1}
    monkeypatch.setattr(overhead, "published", lambda: small)
    words = ["--full", "--images", "96", "--rounds", "1", "--out", str(tmp_path), "nfe=1"]
    overhead.main([*words, "sampler=ddim"])
    found = json.loads((tmp_path / "overhead-full.json").read_text())
    assert found["network"] == "edm_cifar10, random weights"
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert [row["what"] for row in found["rows"][2:]] == list(overhead.SAVES)
    assert all(row["ratio"] > 0 for row in found["rows"][2:])


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(SystemExit, match="is no checkout of NVlabs/edm"):
        script("against_edm").main(["--edm", str(tmp_path), "--tiny"])


@pytest.mark.parametrize("model", ["edm_cifar10", "edm_ffhq", "edm_imagenet64"])
def test_the_small_networks_are_of_the_published_kinds(model):
    against_edm = script("against_edm")
    small, published = (against_edm.architecture(model, tiny) for tiny in (True, False))
    assert small["model_type"] == published["model_type"]
    assert small["label_dim"] == published["label_dim"]
    net = EDMPrecond(**small).eval()
    against_edm.fill(net)
    labels = torch.eye(small["label_dim"])[:2] if small["label_dim"] else None
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert (net(x, 1.0, labels) - x / 5).std() > 0.01  # c_skip is 1/5: more than the input
