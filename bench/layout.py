#!/usr/bin/env python3
"""Speed of the bundled model as ratios: memory layout, rows of a call, dtype and threads, in turn.

    python bench/layout.py [--out FOLDER]

Each figure is the images/s of one network evaluation of 128 images, divided by that of the first
row. The rows are measured in turn for several rounds, and the best round of each counts: other work
on the machine slows some rounds, seldom all.
"""

import time

import torch
from measuring import as_script, options, report

from bdia_exp import batching
from bdia_exp.batching import MOST
from bdia_exp.models.edm import load
from bdia_exp.samplers.schedules import edm

BATCH = 128
LAST, FIRST = torch.channels_last, torch.contiguous_format
ROWS = {
    "contiguous, float32, 1 thread": (FIRST, None, 1, MOST),
    "channels last, float32, 1 thread": (LAST, None, 1, MOST),
    "the same in calls of 16 rows": (LAST, None, 1, 16),
    "the same in one call of 128 rows": (LAST, None, 1, 128),
    "channels last, bfloat16, 1 thread": (LAST, torch.bfloat16, 1, MOST),
    "contiguous, float32, 2 threads": (FIRST, None, 2, MOST),
    "channels last, float32, 2 threads": (LAST, None, 2, MOST),
    "the same in calls of 16 rows, 2 threads": (LAST, None, 2, 16),
    "the same in one call of 128 rows, 2 threads": (LAST, None, 2, 128),
}


def speed(layout, dtype, threads: int, rows: int) -> float:
    """Images per second of one evaluation, in calls of so many rows."""
    batching.MOST = rows
    torch.set_num_threads(threads)
    model = load("bundled:fashion_mini.safetensors")
    model.net.to(memory_format=layout).body_dtype = dtype
    z, labels = torch.randn(BATCH, *model.shape).double(), torch.arange(BATCH) % model.num_classes
    denoise = model.denoiser(labels)
    with torch.inference_mode():
        denoise(z, edm(1.0))
        began = time.perf_counter()
        for _ in range(3):
            denoise(z, edm(1.0))
    return 3 * BATCH / (time.perf_counter() - began)


def main() -> None:
    given = options(__doc__).parse_args()
    best = dict.fromkeys(ROWS, 0.0)
    for _ in range(5):
        for name, how in ROWS.items():
            best[name] = max(best[name], speed(*how))
    first = best[next(iter(ROWS))]
    rows = [{"how": name, "ratio of speed": value / first} for name, value in best.items()]
    report("layout", rows, given.out)


if __name__ == "__main__":
    as_script(main)
