#!/usr/bin/env python3
"""Speed of the bundled model as ratios: memory layout, dtype and threads, measured in turn.

    python bench/layout.py [--out FOLDER]

Each figure is the images/s of one network evaluation at batch 64, divided by that of the first row.
The rows are measured in turn for several rounds, and the best round of each counts: other work on
the machine slows some rounds, seldom all.
"""

import time

import torch
from measuring import as_script, options, report

from bdia_exp.models.edm import EDM, load
from bdia_exp.samplers.schedules import edm

ROWS = {
    "contiguous, float32, 1 thread": (torch.contiguous_format, None, 1),
    "channels last, float32, 1 thread": (torch.channels_last, None, 1),
    "channels last, bfloat16, 1 thread": (torch.channels_last, torch.bfloat16, 1),
    "contiguous, float32, 2 threads": (torch.contiguous_format, None, 2),
    "channels last, float32, 2 threads": (torch.channels_last, None, 2),
}


def speed(model: EDM, layout, dtype, threads: int) -> float:
    """Images per second of one evaluation."""
    torch.set_num_threads(threads)
    model.net.to(memory_format=layout).body_dtype = dtype
    z, labels = torch.randn(64, *model.shape).double(), torch.arange(64) % model.num_classes
    denoise = model.denoiser(labels)
    with torch.inference_mode():
        denoise(z, edm(1.0))
        began = time.perf_counter()
        for _ in range(3):
            denoise(z, edm(1.0))
    return 3 * 64 / (time.perf_counter() - began)


def main() -> None:
    given = options(__doc__).parse_args()
    model = load("bundled:fashion_mini.safetensors")
    best = dict.fromkeys(ROWS, 0.0)
    for _ in range(5):
        for name, how in ROWS.items():
            best[name] = max(best[name], speed(model, *how))
    first = best[next(iter(ROWS))]
    rows = [{"how": name, "ratio of speed": value / first} for name, value in best.items()]
    report("layout", rows, given.out)


if __name__ == "__main__":
    as_script(main)
