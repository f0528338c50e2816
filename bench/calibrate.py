#!/usr/bin/env python3
"""The TFLOP/s that this machine sustains on a network, for the plans of `bdia-exp reproduce`.

    python bench/calibrate.py model=edm_cifar10 model.checkpoint=FILE
    python bench/calibrate.py --processes 2 model=fashion_mini     # as with -p 2

Batches are sampled, without decoding and scoring, and the operations of their evaluations are
divided by the median time. The result is written to the cache for the device's name (a GPU, or the
CPU with its number of threads); a dry run reads it there. With --processes several processes sample
at once, and the figure is that of all. The words after the options are those of `bdia-exp sample`.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from measuring import as_script, asked_of, options, report, seconds

from bdia_exp import dist
from bdia_exp.jobs import pace
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.estimates import cost_of


def operations(asked: Any) -> float:
    """Floating-point operations of sampling one batch."""
    how = {key: getattr(asked, key) for key in ("batch", "dtype", "guidance")}
    cost = cost_of(asked.model.make, **how)
    if cost is None:
        sys.exit("the operations of this network are not known: give a model with a network=")
    return cost.flops * asked.nfe * asked.batch


def speeds(words: Sequence[str], rounds: int, threads: int) -> list[float]:
    """TFLOP/s of each of the rounds, after a first one that is not counted."""
    torch.set_num_threads(threads)
    asked = asked_of(words)
    job, flops = Job.of(asked, dist.device(asked.device)), operations(asked)
    seeds = range(asked.batch)
    job.sample(seeds, lambda: None)
    return [flops / seconds(lambda: job.sample(seeds, lambda: None)) / 1e12 for _ in range(rounds)]


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--forget", action="store_true", help="do not write it to the cache")
    parser.add_argument("words", nargs="*", default=["model=fashion_mini", "nfe=9"])
    given = parser.parse_args(words)
    threads = max(torch.get_num_threads() // given.processes, 1)
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        each = [
            pool.submit(speeds, given.words, given.rounds, threads) for _ in range(given.processes)
        ]
        found = [one.result() for one in each]
    total = sum(map(median, found))
    torch.set_num_threads(threads)
    name, how = dist.device_name(dist.device(asked_of(given.words).device)), " ".join(given.words)
    if given.processes > 1:
        how += f", {given.processes} processes"
    rows = [{"device": name, "how": how, "TFLOP/s": total}]
    rows[0] |= {"least": sum(map(min, found)), "greatest": sum(map(max, found))}
    report("calibrate", rows, given.out)
    if not given.forget:
        print(f"kept in {pace.keep(name, total, how)}")


if __name__ == "__main__":
    as_script(main)
