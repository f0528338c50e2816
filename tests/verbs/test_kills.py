"""A process of several that dies, or is asked to stop: the run ends soon, and says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from bdia_exp.dist.launcher import _failed
from tests.verbs.running import QUICK, pngs
from tests.verbs.test_processes import _until, _workers

OURS = ["bdia_exp", "sample", "-p", "2"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *OURS[:2]]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to find the processes"
)


def started(out: Path, launcher: list[str], **env: str) -> tuple[subprocess.Popen, list[int]]:
    """A run in two processes that makes images, and the numbers of its processes."""
    words = [*QUICK, "images=4000", "batch=2", f"out={out}"]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert _until(lambda: list(out.rglob("*.png")) or process.poll() is not None)
    return process, sorted(_workers(process.pid))


def ended(process: subprocess.Popen, workers: list[int], out: Path) -> str:
    """What the run says on stderr. It ends soon, with all its processes, and leaves no part."""
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert _until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in workers), 20)
    assert not list(out.rglob("*.part"))
    return said


@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["-p", "torchrun"])
def test_a_process_that_is_killed_ends_the_run_and_is_named(launcher, whole, tmp_path):
    process, workers = started(tmp_path, launcher)
    os.kill(workers[-1], signal.SIGKILL)
    said = ended(process, workers, tmp_path)
    if launcher is OURS:
        assert process.returncode == 137
        assert said == "\nError: process 1 was killed by SIGKILL; run the same command again\n"
    else:
        assert process.returncode == 1
        assert "Signal 9 (SIGKILL)" in said
    made = pngs(tmp_path)
    assert all(made.get(name, image) == image for name, image in pngs(whole).items())


BROKEN = """
import os, sys
if os.environ.get("RANK") == "1":
    sys.modules["bdia_exp.verbs.sample"] = None
"""


def test_an_exception_in_one_process_ends_the_run_and_names_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    process, workers = started(tmp_path / "run", OURS, PYTHONPATH=path)
    said = ended(process, workers, tmp_path)
    assert process.returncode == 1
    assert "Traceback" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("Error: process 1 failed (exit status 1); its message is above")


@pytest.mark.parametrize(
    ("code", "status", "how"),
    [
        (255, 255, "failed (exit status 255); its message is above"),
        (137, 137, "was killed by SIGKILL"),
        (-11, 139, "was killed by SIGSEGV"),
    ],
)
def test_a_status_is_a_signal_only_if_there_is_one(code, status, how, capsys, monkeypatch):
    monkeypatch.delenv("BDIA_EXP_TOLD", raising=False)
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=code, error_file="none")
    assert _failed(ChildFailedError("x", {1: failure})) == status
    assert capsys.readouterr().err == f"\nError: process 1 {how}; run the same command again\n"
