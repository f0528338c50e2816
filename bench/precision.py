#!/usr/bin/env python3
"""Images and FID of other ways to run a network, against float32: the same seeds, paired.

    python bench/precision.py --images 2000 model=fashion_mini sampler=edm nfe=35
    python bench/precision.py --how dtype=bfloat16 --how "dtype=bfloat16 compile=default"

The words after the options are those of `bdia-exp sample`. The paired difference of FID has its
95 % interval, from blocks of seeds. Differences of images are of 255 levels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from agreement import agreement
from measuring import Row, as_script, asked_of, options, report
from torch import Tensor
from tqdm import tqdm

from bdia_exp import dist
from bdia_exp.jobs.sampling import Job
from bdia_exp.jobs.scoring import scorer_of
from bdia_exp.report.statistics import difference

WAYS = ("dtype=bfloat16", "dtype=float16", "compile=default", "dtype=bfloat16 compile=default")


def images_and_score(words: Sequence[str], count: int, score: bool) -> tuple[Tensor, Any]:
    """Images of the seeds 0 … count−1, uint8 [N, C, H, W] on the CPU, and their score or None."""
    asked = asked_of(["dtype=float32", *words, f"images={count}"])
    device = dist.device(asked.device)
    job = Job.of(asked, device)
    scorer = scorer_of(asked, device, asked.batch) if score else None
    parts = []
    with tqdm(total=count, desc=" ".join(words)[-60:]) as bar, torch.inference_mode():
        for start in range(0, count, asked.batch):
            batch = job.sample(asked.wanted[start : start + asked.batch], lambda: None)
            assert batch.states is not None
            images = job.model.decode(batch.states)
            if scorer:
                scorer.update(images, batch.labels, batch.seeds)
            parts.append(images.cpu())
            bar.update(len(images))
    return torch.cat(parts), scorer.result() if scorer else None


def fids(found: dict[str, Any], usual: dict[str, Any]) -> Row:
    """FID, and its paired difference from that of float32."""
    row: Row = {"FID": found["fid"], "difference of FID": found["fid"] - usual["fid"], "±": None}
    key = "fid_without_block"
    if key in found and key in usual:
        row["±"] = difference(found["fid"], found[key], usual["fid"], usual[key]).half_width
    return row


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--how", action="append", help="keys that say how; may be repeated")
    parser.add_argument("--no-score", action="store_true", help="compare the images only")
    parser.add_argument("words", nargs="*", default=["model=fashion_mini", "sampler=edm"])
    given = parser.parse_args(words)
    usual, score = images_and_score(given.words, given.images, not given.no_score)
    rows: list[Row] = []
    for how in given.how or WAYS:
        made, found = images_and_score([*given.words, *how.split()], given.images, bool(score))
        row = {"how": how, **agreement(made, usual)}
        rows.append(row | (fids(found, score) if score else {}))
    report("precision", rows, given.out, words=given.words, images=given.images)


if __name__ == "__main__":
    as_script(main)
