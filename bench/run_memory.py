#!/usr/bin/env python3
"""Peak memory of a scored run as a ratio: many toy images to 1,000, for values of save=.

    python bench/run_memory.py [--images 10000] [--save shards folder] [--out FOLDER]

Memory must not grow with the number of images.
"""

import os
import subprocess
import sys
import tempfile

from measuring import as_script, options, report

JOB = ["model=toy", "sampler=ddim", "nfe=1", "score=true", "device=cpu", "batch=64"]
FEW = 1000


def peak(save: str, images: int) -> int:
    """The peak resident memory of a run in bytes."""
    with tempfile.TemporaryDirectory() as out:
        words = [*JOB, f"save={save}", f"images={images}", f"out={out}/run"]
        command = [sys.executable, "-m", "bdia_exp", "sample", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--save", nargs="+", default=["shards", "folder"])
    given = parser.parse_args()
    rows = []
    for save in given.save:
        few, many = peak(save, FEW), peak(save, given.images)
        rows.append(
            {
                "save": save,
                f"MB for {FEW} images": round(few / 1e6),
                f"ratio for {given.images}": many / few,
            }
        )
    report("run_memory", rows, given.out)


if __name__ == "__main__":
    as_script(main)
