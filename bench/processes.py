#!/usr/bin/env python3
"""Speed of sampling as a ratio to one process of one thread: two threads, two processes.

    python bench/processes.py [--rounds 3] [--out FOLDER]

All sample the same 512 images, in turn; the best round of each counts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import as_script, options, report

JOB = ["sampler=edm", "nfe=9", "images=512", "save=none", "device=cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ROWS: dict[str, tuple[list[str], str]] = {
    "1 process, 1 thread": ([], "1"),
    "1 process, 2 threads": ([], "2"),
    "2 processes, 1 thread each": (TORCHRUN, "1"),
}


def speed(launcher: list[str], threads: str) -> float:
    """Images per second, from the run's record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "bdia_exp", "sample", *JOB, f"out={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return json.loads((Path(folder) / "record.json").read_text())["images_per_second"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    best = dict.fromkeys(ROWS, 0.0)
    for _ in range(given.rounds):
        for name, (launcher, threads) in ROWS.items():
            best[name] = max(best[name], speed(launcher, threads))
    first = best[next(iter(ROWS))]
    rows = [{"how": name, "ratio of speed": value / first} for name, value in best.items()]
    report("processes", rows, given.out)


if __name__ == "__main__":
    as_script(main)
