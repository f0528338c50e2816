#!/usr/bin/env python3
"""The gain from decoding and writing in a separate thread, as ratios of time.

    python bench/overlap.py [--out FOLDER]

The tiny Stable Diffusion makes 16 images of 256×256 pixels, one thread per operation: sampling
alone, decoding and writing alone, one after the other, both at once (as `bdia-exp sample` does). At
best the last takes as long as the longer of the first two. The best of three rounds counts.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch
from measuring import as_script, options, report
from tqdm import tqdm

from bdia_exp.cli.configs import settings
from bdia_exp.jobs import sampling
from bdia_exp.jobs.sampling import Job, Places, stream

BATCHES = [range(i, i + 4) for i in range(0, 16, 4)]
WORDS = ["model=tiny-sd", "model.size=256", "prompt=a bicycle", "nfe=8", "device=cpu"]


class InTurn:
    """An executor that does the work immediately, in the calling thread."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function: Callable, *words) -> Future:
        done: Future = Future()
        done.set_result(function(*words))
        return done


def seconds(job: Job, save: str, executor: type, latents: Path | None = None) -> float:
    """Seconds that a stream takes; with `latents`, the end states are read from that folder."""
    with tempfile.TemporaryDirectory() as folder, tqdm(disable=True) as bar:
        root = latents or Path(folder)
        asked = settings("sample", [*WORDS, f"save={save}", f"out={root}"])
        places = Places.of(root, asked)
        usual, sampling.ThreadPoolExecutor = sampling.ThreadPoolExecutor, executor
        began = time.perf_counter()
        try:
            for _ in stream(job, BATCHES, places, bar):
                pass
        finally:
            sampling.ThreadPoolExecutor = usual
        if latents and places.images:
            places.images.remove()
        return time.perf_counter() - began


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    job = Job.of(settings("sample", WORDS), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        kept, threads = Path(folder), sampling.ThreadPoolExecutor
        seconds(job, "latents", threads, kept)
        rows: dict[str, Callable[[], float]] = {
            "sampling, then decoding and writing": lambda: seconds(job, "folder", InTurn),
            "sampling alone": lambda: seconds(job, "latents", InTurn),
            "decoding and writing alone": lambda: seconds(job, "folder", InTurn, kept),
            "both at once (what is used)": lambda: seconds(job, "folder", threads),
        }
        best = dict.fromkeys(rows, float("inf"))
        for _ in range(3):
            for name, run in rows.items():
                best[name] = min(best[name], run())
    first = next(iter(best.values()))
    rows = [{"how": name, "ratio of time": value / first} for name, value in best.items()]
    report("overlap", rows, given.out)


if __name__ == "__main__":
    as_script(main)
