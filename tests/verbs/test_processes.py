"""Several processes, and a run that was stopped: the same images as one process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.verbs.running import QUICK, pngs, sample


def test_torchrun_gives_the_same_images_and_fid(whole, tmp_path):
    score = ["score=true", "images=70"]
    one = sample(tmp_path / "one", *score)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "bdia_exp", "sample"]
    command += [*QUICK, *score, f"out={tmp_path / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two/record.json").read_text())
    assert two["processes"] == 2
    assert two["sampled"] == 70
    assert pngs(tmp_path / "two") == pngs(tmp_path / "one")
    assert two["score"]["fid"] == pytest.approx(one["score"]["fid"], rel=1e-9)
    parts = "fid_without_block"
    assert two["score"][parts] == pytest.approx(one["score"][parts], rel=1e-6)
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


def test_a_process_without_images_takes_part(tmp_path):
    """One batch for two processes: both count, score and finish."""
    words = ["score=true", "images=70", "metrics=[isc]", "nfe=3", "device=cpu", "save=none"]
    command = [sys.executable, "-m", "bdia_exp", "sample", "batch=70", *words]
    more = ["-p", "2", f"out={tmp_path / '2'}"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = [sample(tmp_path / "1", "batch=70", *words)["score"]]
    scores.append(json.loads((tmp_path / "2/record.json").read_text())["score"])
    assert scores[0]["label_accuracy"] == scores[1]["label_accuracy"] > 0
    assert scores[0]["isc"] == scores[1]["isc"]
    assert scores[0]["fid"] == pytest.approx(scores[1]["fid"], rel=1e-9)


def test_processes_started_by_ourselves_give_the_same(whole, tmp_path):
    """Several runs in a row, as --multirun makes them, in the same two processes."""
    command = [sys.executable, "-m", "bdia_exp", "sample", "-p", "2"]
    words = ["-m", *QUICK[1:], "nfe=1,3", "images=40", f"out={tmp_path}/${{nfe}}"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("nfe=3 images=40") == 1
    assert done.stdout.count("40 images") == 2
    assert pngs(tmp_path / "3") == pngs(whole)
    assert json.loads((tmp_path / "3/record.json").read_text())["processes"] == 2
    # A user's mistake is said once, by one process.
    wrong = subprocess.run(
        [*command, "nfe=4", f"out={tmp_path / 'y'}"], capture_output=True, text=True, timeout=300
    )
    assert wrong.returncode == 1
    assert wrong.stderr == "Error: nfe=4 is not possible with this sampler: choose 3 or 5\n"


def _workers(launcher: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == launcher:
                found.append(int(folder.name))
    return found


def _until(what, seconds: float = 120) -> bool:
    deadline = time.time() + seconds
    while not (found := what()) and time.time() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_the_processes_end_with_their_launcher(whole, tmp_path):
    """Then the folder is free, and the run can go on."""
    words = [*QUICK, "images=16", "batch=2", f"out={tmp_path}"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "bdia_exp", "sample", "-p", "2", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert _until(lambda: list(tmp_path.rglob("*.png")))
    workers = _workers(launcher.pid)
    assert len(workers) >= 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(60)
    assert _until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in workers), 20)
    sample(tmp_path, "images=16", "batch=16")
    assert pngs(tmp_path).items() <= pngs(whole).items()
    assert len(pngs(tmp_path)) == 16


WAITING = """
import os
import signal
import sys
import time
import torch
from bdia_exp import dist
from bdia_exp.dist import pulse
from bdia_exp.errors import UserError
pulse.REMIND, pulse.BEAT = 0.5, 0.1
dist.start()
if dist.rank():
    if os.environ["HOW"] == "slow":
        time.sleep(4)
    else:
        os.system(f"(sleep 2; kill -CONT {os.getpid()}) &")
        os.kill(os.getpid(), signal.SIGSTOP)
try:
    ranks = dist.gather(dist.rank())
    with dist.alone():
        sys.stdout.write(f"{ranks} {dist.world()} {torch.get_num_threads()}\\n")
except UserError as error:
    sys.stdout.write(f"{error}\\n")
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [("slow", "waiting for process 1 for 0 min: it is alive"), ("stopped", "process 1 has not")],
)
def test_a_slow_process_is_told_from_one_that_is_stopped(how, said):
    """The others wait for it as long as the user allows. Work alone has the threads of both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--no-python", sys.executable, "-c", WAITING]
    env = {**os.environ, "HOW": how, "BDIA_EXP_TIMEOUT": "2" if how == "slow" else "60"}
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    lines = [line for line in done.stderr.splitlines() if "process 1" in line]
    # The first line may come before the process stops, and the last one after it goes on.
    assert any(line.startswith(said) for line in lines), lines
    assert "process 0" not in done.stderr
    if how == "stopped":
        assert done.stdout == "[0, 1] 1 2\n" * 2
    else:
        assert "does not answer" in done.stdout
        assert "; BDIA_EXP_TIMEOUT=SECONDS waits longer" in done.stdout
