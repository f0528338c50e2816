#!/usr/bin/env python3
"""Peak memory of a scored run as a ratio: many toy images to 1,000, for values of save=.

    python bench/run_memory.py [images] [save …]

Memory must not grow with the number of images.
"""

import os
import subprocess
import sys
import tempfile

JOB = ["model=toy", "sampler=ddim", "nfe=1", "score=true", "device=cpu", "batch=64"]


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


def main(images: str = "10000", *saves: str) -> None:
    for save in saves or ("shards", "folder"):
        few, many = peak(save, 1000), peak(save, int(images))
        print(
            f"save={save:8} {few / 1e6:,.0f} MB for 1,000 images, "
            f"{many / few:.2f} times that for {int(images):,}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
