#!/usr/bin/env python3
"""Seconds of the Fréchet distance of Inception's dimensions, and of its parts.

    python bench/frechet.py [--dim 2048] [--rounds 3]

The covariances are those of random features with a falling spectrum. The parts are what a scored
run computes at its end. The ratio is to a form with two eigenvalue problems with vectors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from measuring import as_script, in_turn, options, ratio, report

from bdia_exp.metrics.frechet import BLOCKS, frechet_distance, frechet_distances, rank, root
from bdia_exp.metrics.moments import Statistics


def random_statistics(dim: int, seed: int) -> Statistics:
    """Of 3·dim features, a random mix of independent ones whose spread falls by 1/e each dim/12."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((3 * dim, dim)) * np.exp(-np.arange(dim) * 12 / dim)
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]
    features = mixed @ axes
    return Statistics(features.mean(0), np.cov(features.T))


def by_axes(a: Statistics, b: Statistics) -> float:
    """The same distance from the axes of both covariances."""
    (va, axes_a), (vb, axes_b) = np.linalg.eigh(a.cov), np.linalg.eigh(b.cov)
    va, vb = va.clip(0), vb.clip(0)
    overlap = np.linalg.svd(
        np.sqrt(va)[:, None] * (axes_a.T @ axes_b) * np.sqrt(vb), compute_uv=False
    )
    return float(np.square(a.mean - b.mean).sum() + va.sum() + vb.sum() - 2 * overlap.sum())


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(words)
    a, b = (random_statistics(given.dim, seed) for seed in (1, 2))
    product = root(a.cov).T @ root(b.cov)
    runs: dict[str, Callable[[], Any]] = {
        "Fréchet distance": partial(frechet_distance, a, b),
        "of it, one Cholesky factor": partial(root, a.cov),
        "of it, the singular values": partial(np.linalg.svd, product, compute_uv=False),
        "one of the blocks of the interval": partial(frechet_distances, [a], b),
        "the numerical rank": partial(rank, a),
        "by eigenvectors": partial(by_axes, a, b),
    }
    times = in_turn(runs, given.rounds)
    rows = [{"part": name, "seconds": median(taken)} for name, taken in times.items()]
    exact, other = frechet_distance(a, b), by_axes(a, b)
    report(
        "frechet",
        rows,
        given.out,
        dimensions=given.dim,
        blocks=BLOCKS,
        speed=ratio(times["by eigenvectors"], times["Fréchet distance"]),
        relative_difference=abs(exact - other) / other,
    )


if __name__ == "__main__":
    as_script(main)
