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
    first, second = (run(ONLY="calibrate", PYTHON="true") for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert "== calibrate: done before" not in first.stdout
    assert "== calibrate: done before" in second.stdout
    assert [file.name for file in (tmp_path / "out/done").iterdir()] == ["calibrate"]
    assert first.stdout.count(": skipped") == 8


def test_a_part_that_fails_is_named_and_the_others_run(run, tmp_path):
    done = run(SKIP="tests fixed precision diffusers edm train-cifar10", FASHION="/nowhere.npz")
    assert done.returncode == 1
    assert "failed: sd calibrate (logs in" in done.stdout
    assert "== train-fashion\n/nowhere.npz is missing" in done.stdout
    assert not [*(tmp_path / "out/done").iterdir()]
    assert (tmp_path / "out/calibrate.log").exists()


def test_what_lacks_something_is_left_out_and_not_marked(run, tmp_path):
    done = run(ONLY="edm train-fashion", FASHION="/nowhere.npz")
    assert done.returncode == 0
    assert "/nowhere.npz is missing" in done.stdout
    assert "no checkout of NVlabs/edm is given" in done.stdout
    assert not [*(tmp_path / "out/done").iterdir()]
