"""How wide the intervals of a FID are, and how wide they should be, on Gaussians.

    python bench/intervals.py [--out FOLDER]

For each number of images: the half-width that the spread of 60 measured FIDs needs, the mean
half-width that `report.statistics` gives, and the share of the intervals that contain the mean FID;
for one sampler alone, and for the paired difference of two.
"""

import numpy as np
from measuring import Row, as_script, options, report

from bdia_exp.metrics.frechet import BLOCKS, frechet_distance, frechet_distances
from bdia_exp.metrics.moments import Statistics
from bdia_exp.report.statistics import Interval, difference, interval

DIM, RUNS = 64, 60
SPECTRUM = np.exp(-np.arange(DIM) / 12)
REFERENCE = Statistics(np.zeros(DIM), np.diag(SPECTRUM**2))


def moments(features: np.ndarray) -> Statistics:
    return Statistics(features.mean(0), np.cov(features.T), len(features))


def scores(features: np.ndarray) -> tuple[float, list[float]]:
    """FID of features [N, DIM], and without each block."""
    block = np.arange(len(features)) % BLOCKS
    parts = (moments(features[block != b]) for b in range(BLOCKS))
    return frechet_distance(moments(features), REFERENCE), frechet_distances(parts, REFERENCE)


def row(images: int, what: str, found: list[Interval]) -> Row:
    values = np.array([one.value for one in found])
    halves = np.array([one.half_width for one in found])
    covered = np.mean(abs(values - values.mean()) <= halves)
    needed = 1.96 * values.std(ddof=1)
    return {
        "images": images,
        "of": what,
        "half-width needed": float(needed),
        "given": float(halves.mean()),
        "contain the mean, %": float(100 * covered),
    }


def main() -> None:
    given = options(__doc__).parse_args()
    rng, rows = np.random.default_rng(0), []
    for images in (70, 300, 1000, 5000):
        alone, paired = [], []
        for _ in range(RUNS):
            noise, other = rng.standard_normal((2, images, DIM))
            a = scores((1.1 * noise + 0.1) * SPECTRUM)
            b = scores((1.05 * noise + 0.2 * other + 0.12) * SPECTRUM)
            alone.append(interval(*a))
            paired.append(difference(*a, *b))
        rows += [row(images, "FID", alone), row(images, "paired difference", paired)]
    report("intervals", rows, given.out)


if __name__ == "__main__":
    as_script(main)
