#!/usr/bin/env python3
"""Sampling as a run does it: images per second, TFLOP/s and peak memory, for each way to run it.

    python bench/sampling.py model=sd15 model.checkpoint=random:0 prompt="a red dress" nfe=20 \
        batch=4 device=cuda --how dtype=float16 --how "dtype=float16 graphs=auto"

Random weights take as long as trained ones. Noise to uint8 pixels is timed; the first batch, in
which kernels are compiled and chosen, is not. Memory is CUDA's peak with the weights (none on a
CPU), and beside it what `reproduce dry_run=true` estimates. The words are those of
`bdia-exp sample`.
"""

from collections.abc import Sequence
from statistics import median

import torch
from measuring import Row, as_script, asked_of, options, report, seconds

from bdia_exp import dist
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.estimates import cost_of


def measured(words: Sequence[str], rounds: int) -> Row:
    asked = asked_of(words)
    device = dist.device(asked.device)
    on_cuda = device.startswith("cuda")
    job, seeds = Job.of(asked, device), range(asked.batch)

    def run() -> None:
        states = job.sample(seeds, lambda: None).states
        assert states is not None
        job.model.decode(states).cpu()

    first = seconds(run)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    taken = median(seconds(run) for _ in range(rounds))
    how = {key: getattr(asked, key) for key in ("batch", "dtype", "guidance")}
    cost = cost_of(asked.model.make, **how)
    row: Row = {"images/s": asked.batch / taken, "seconds, first batch": first}
    if cost:
        flops = asked.batch * (asked.nfe * cost.flops + cost.decoding.flops)
        row["TFLOP/s"] = flops / taken / 1e12
        row["estimated, MB"] = round((cost.weights_size + cost.working_set) / 1e6)
    row["peak, MB"] = round(torch.cuda.max_memory_allocated() / 1e6) if on_cuda else None
    return row


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--how", action="append", help="keys that say how; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("words", nargs="*", default=["model=fashion_mini", "nfe=9"])
    given = parser.parse_args(words)
    rows = [
        {"how": how, **measured([*given.words, *how.split()], given.rounds)}
        for how in ["dtype=float32", *(given.how or [])]
    ]
    report("sampling", rows, given.out, words=given.words)


if __name__ == "__main__":
    as_script(main)
