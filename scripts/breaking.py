"""A run that scripts/faults.py breaks, and what is left of it."""

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bdia_exp.store.files import PART
from bdia_exp.store.manifest import Manifest

LONGEST = 60.0
"""Seconds within which all processes of a broken run must have ended."""
MEMBER = b"PK\x03\x04"
"""The first bytes of each member of a zip."""


class Broken(Exception):  # noqa: N818
    """A run did not do what is guaranteed."""


@dataclass
class Bench:
    """The run that is broken: its size, its processes, and the undisturbed result."""

    images: int
    shard: int
    processes: int
    kills: int
    root: Path
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    seconds: float = 0.0

    @property
    def whole(self) -> Path:
        return self.root / "undisturbed"

    def command(self, out: Path, *more: str) -> list[str]:
        words = ["model=toy", "sampler=ddim", "nfe=20", "batch=50", "device=cpu", "score=true"]
        words += [f"images={self.images}", f"shard={self.shard}", "save=shards", f"out={out}"]
        start = [sys.executable, "-m", "bdia_exp", "sample", "-p", str(self.processes)]
        return [*start, *words, *more]

    def begin(self, out: Path, *more: str) -> subprocess.Popen:
        """Starts the run in a process group of its own. Waits until it makes images."""
        log = (self.root / "log.txt").open("wb")
        started = subprocess.Popen(
            self.command(out, *more), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while not any(out.glob(f"shards/.*{PART}")) and started.poll() is None:
            if time.monotonic() > deadline:
                raise Broken("the run does not start")
            time.sleep(0.02)
        return started

    def finish(self, out: Path, *more: str) -> None:
        """Continues a run to its end."""
        done = subprocess.run(self.command(out, *more), capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"the run cannot be continued: {done.stderr[-300:]}")

    def some_time(self, parts: int = 1) -> None:
        """Waits for a random part of the time that the images take."""
        time.sleep(self.chance.uniform(0, self.seconds / parts))

    def said(self) -> str:
        """The last line that the last run of `begin` printed."""
        lines = (self.root / "log.txt").read_text(errors="replace").replace("\r", "\n").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return said.replace(str(self.root / "run"), "RUN")[:160]

    def is_equal(self, out: Path) -> bool:
        """Whether a run has the files and the score of the undisturbed one, and nothing else."""
        ours, theirs = (json.loads((r / "record.json").read_text()) for r in (out, self.whole))
        same_score = all(
            abs(ours["score"][key] - theirs["score"][key]) <= 1e-9 * abs(theirs["score"][key])
            for key in ("fid", "label_accuracy")
        )
        return same_score and shards(out) == shards(self.whole) and not [*out.rglob(".*")]


def shards(root: Path) -> dict[str, bytes]:
    """The files of a run's shards, and their list."""
    return {file.name: file.read_bytes() for file in (*root.glob("shards/*"), root / "shards.csv")}


def listed(root: Path) -> set[str]:
    """The zips that the run has listed and that have the size of the list."""
    stated = Manifest(root, "shards").stated()
    return {
        name
        for name, versions in stated.items()
        if name.endswith(".zip")
        and (file := root / "shards" / name).exists()
        and file.stat().st_size in {size for size, _ in versions}
    }


def is_complete(root: Path) -> bool:
    """Whether a run was finished once."""
    record = root / "record.json"
    return record.exists() and bool(json.loads(record.read_text())["complete"])


def unfinished(root: Path) -> int:
    """The images in shards that were not finished."""
    return sum(f.read_bytes().count(MEMBER) for f in root.glob(f"shards/.*{PART}"))


def family(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [each for child in map(int, found.split()) for each in (child, *family(child))]


def require_end(started: subprocess.Popen, pids: list[int]) -> float:
    """Waits for the end of a run and of all its processes. Returns the seconds that it took.

    Raises Broken if they go on.
    """
    began = time.monotonic()
    while started.poll() is None or any(map(is_alive, pids)):
        if time.monotonic() > began + LONGEST:
            raise Broken(f"processes of the broken run are still there after {LONGEST:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
