#!/usr/bin/env python3
"""Start-up of the command line: seconds, and ratios to `python -c "import torch"`.

    python bench/startup.py [ROUNDS]

The rows are run in turn, ROUNDS times (default 5). Printed is the median wall time, one thread.
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

TORCH = 'python -c "import torch"'
ROWS = {
    TORCH: ["-c", "import torch"],
    "bdia-exp --help": ["-m", "bdia_exp", "--help"],
    "bdia-exp models": ["-m", "bdia_exp", "models"],
    "bdia-exp reproduce demo dry_run=true": ["-m", "bdia_exp", "reproduce", "demo", "dry_run=true"],
}


def seconds(words: list[str], folder: str) -> float:
    """Wall time of one command, which writes its results to the folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    where = [f"out={folder}/run"] if "reproduce" in words else []
    began = time.perf_counter()
    command = [sys.executable, *words, *where]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    taken: dict[str, list[float]] = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, words in ROWS.items():
                taken[name].append(seconds(words, folder))
    torch = median(taken[TORCH])
    print(f"{'':38} seconds  ratio")
    for name, times in taken.items():
        print(f"{name:38} {median(times):7.2f}  {median(times) / torch:5.2f}")


if __name__ == "__main__":
    main()
