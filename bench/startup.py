#!/usr/bin/env python3
"""Start-up of the command line: seconds, and ratios to `python -c "import torch"`.

    python bench/startup.py [--rounds 5] [--out FOLDER]

The rows are run in turn. Printed is the median wall time, one thread.
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from measuring import as_script, options, report

TORCH = 'python -c "import torch"'
ROWS = {
    TORCH: ["-c", "import torch"],
    "bdia-exp --help": ["-m", "bdia_exp", "--help"],
    "bdia-exp models": ["-m", "bdia_exp", "models"],
    "bdia-exp sample, one evaluation": [
        *("-m", "bdia_exp", "sample", "sampler=ddim", "nfe=1", "images=1", "save=none", "sheet=0"),
        "device=cpu",
    ],
    "bdia-exp reproduce demo dry_run=true": ["-m", "bdia_exp", "reproduce", "demo", "dry_run=true"],
}


def seconds(words: list[str], folder: str) -> float:
    """Wall time of one command, which writes its results to the folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    where = (
        [f"out={tempfile.mkdtemp(dir=folder)}/run"] if {"reproduce", "sample"} & {*words} else []
    )
    began = time.perf_counter()
    command = [sys.executable, *words, *where]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for name, words in ROWS.items():
                taken[name].append(seconds(words, folder))
    torch = median(taken[TORCH])
    middle = {name: median(times) for name, times in taken.items()}
    rows = [{"command": k, "seconds": v, "ratio": v / torch} for k, v in middle.items()]
    report("startup", rows, given.out)


if __name__ == "__main__":
    as_script(main)
