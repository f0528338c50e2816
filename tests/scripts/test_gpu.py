"""scripts/gpu.sh: parts are skipped, marked when they are done, and named when they fail."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/gpu.sh"


@pytest.fixture
def run(tmp_path):
    def run(**words: str) -> subprocess.CompletedProcess:
        given = {"OUT": f"{tmp_path}/out", "WORK": f"{tmp_path}/work", "DEVICE": "cpu", "TINY": "1"}
        environment = os.environ | given | {"PYTHON": "false", "EDM": ""} | words
        return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_a_part_that_is_done_is_not_run_again(run, tmp_path):
    first, second = run(ONLY="edm"), run(ONLY="edm")
    assert first.returncode == second.returncode == 0
    assert "== edm\nno checkout of NVlabs/edm is given" in first.stdout
    assert "== edm: done before" in second.stdout
    assert [file.name for file in (tmp_path / "out/done").iterdir()] == ["edm"]
    assert first.stdout.count(": skipped") == 8


def test_a_part_that_fails_is_named_and_the_others_run(run, tmp_path):
    done = run(SKIP="tests fixed precision diffusers sd train-fashion train-cifar10")
    assert done.returncode == 1
    assert "failed: calibrate (logs in" in done.stdout
    assert (tmp_path / "out/done/edm").exists()
    assert not (tmp_path / "out/done/calibrate").exists()
    assert (tmp_path / "out/calibrate.log").exists()


def test_missing_data_leave_a_training_out(run):
    done = run(ONLY="train-fashion", FASHION="/nowhere/train.npz")
    assert done.returncode == 0
    assert "/nowhere/train.npz is missing" in done.stdout
