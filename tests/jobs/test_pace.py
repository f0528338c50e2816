"""The speed from which hours are estimated: given, measured or guessed, and said."""

import pytest
import torch

from bdia_exp import dist
from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.jobs import pace
from bdia_exp.jobs.pace import GUESS, Pace


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_given_before_measured_before_guessed(cache):
    assert Pace.of(None, "cpu, 2 threads").tflops == GUESS
    assert "guess" in Pace.of(None, "cpu, 2 threads").source
    assert pace.keep("cpu, 2 threads", 0.05, "model=fashion_mini").parent == cache
    pace.keep("a GPU", 200.0, "model=edm_cifar10 dtype=bfloat16")
    assert Pace.of(None, "cpu, 2 threads").tflops == 0.05
    assert Pace.of(None, "cpu, 2 threads").hours == "hours on this CPU"
    assert Pace.of(None, "a GPU") == Pace(
        200.0, "measured by bench/calibrate.py with model=edm_cifar10 dtype=bfloat16"
    )
    assert Pace.of(None, "another GPU").tflops == GUESS
    assert Pace.of(7.0, "a GPU") == Pace(7.0, "tflops=")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a GPU": 3}', '{"a GPU": {"tflops": -1, "how": ""}}']
)
def test_a_damaged_file_is_one_sentence(cache, text):
    cache.mkdir()
    (cache / "pace.json").write_text(text)
    with pytest.raises(UserError, match=r"pace.json is damaged .*: remove it and run"):
        Pace.of(None, "a GPU")


def test_a_dry_run_says_where_its_hours_are_from(capfd, tmp_path):
    words = ["experiment=demo", "dry_run=true", "device=cpu", "cells=at 9", f"out={tmp_path}/run"]
    call("reproduce", words)
    assert "at 30 TFLOP/s sustained (a guess" in capfd.readouterr().out
    pace.keep(dist.device_name("cpu"), 0.0625, f"threads {torch.get_num_threads()}")
    call("reproduce", words)
    out = capfd.readouterr().out
    assert "at 0.0625 TFLOP/s sustained (measured by bench/calibrate.py" in out
    assert "evaluations, 0.0" in out
    assert "hours on this CPU" in out
    assert "GPU hours" not in out
