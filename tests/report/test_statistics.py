"""The intervals contain what they promise to contain."""

import numpy as np
import pytest
from scipy import stats

from bdia_exp.metrics.frechet import BLOCKS, frechet_distance
from bdia_exp.metrics.moments import Statistics
from bdia_exp.report.statistics import Interval, difference, interval, share_interval, verdict

RUNS, IMAGES, DIM = 500, 400, 4
REFERENCE = Statistics(np.zeros(DIM), np.eye(DIM))


def scores(features: np.ndarray) -> tuple[float, list[float]]:
    """FID of features [N, D], and without each block of seeds."""

    def fid(f: np.ndarray) -> float:
        return frechet_distance(Statistics(f.mean(0), np.cov(f.T), len(f)), REFERENCE)

    block = np.arange(len(features)) % BLOCKS
    return fid(features), [fid(features[block != b]) for b in range(BLOCKS)]


@pytest.fixture(scope="module")
def runs():
    """Two samplers, RUNS times with the same seeds: Gaussians that share most of their noise."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RUNS):
        noise = rng.standard_normal((IMAGES, DIM))
        other = 0.9 * noise + 0.3 * rng.standard_normal((IMAGES, DIM))
        found.append((scores(1.2 * noise + 0.2), scores(1.3 * other + 0.1)))
    return found


def share(truth: float, intervals: list[Interval]) -> float:
    return float(np.mean([abs(one.value - truth) <= one.half_width for one in intervals]))


def test_an_interval_contains_the_mean_score_of_other_seeds_in_95_of_100_runs(runs):
    for which in (0, 1):
        found = [interval(*run[which]) for run in runs]
        assert 0.92 <= share(float(np.mean([one.value for one in found])), found) <= 0.98


def test_a_paired_difference_has_an_interval_of_its_own(runs):
    found = [difference(*a, *b) for a, b in runs]
    assert 0.92 <= share(float(np.mean([one.value for one in found])), found) <= 0.98
    alone = np.mean([np.hypot(interval(*a).half_width, interval(*b).half_width) for a, b in runs])
    assert np.mean([one.half_width for one in found]) < 0.7 * alone


def test_two_equal_samplers_are_told_apart_in_5_of_100_runs():
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(RUNS):
        noise = rng.standard_normal((3, IMAGES, DIM))
        a, b = (scores(noise[0] + 0.6 * one) for one in noise[1:])
        told += verdict(difference(*a, *b)) != "no difference shown"
    assert 0.02 <= told / RUNS <= 0.08


def test_verdicts_are_words():
    assert verdict(Interval(-1.0, 0.5)) == "better"
    assert verdict(Interval(1.0, 0.5)) == "worse"
    assert verdict(Interval(0.4, 0.5)) == "no difference shown"
    assert str(Interval(0.8154, 0.02)) == "0.815 ± 0.020"


@pytest.mark.quick
@pytest.mark.parametrize(("successes", "count"), [(8, 10), (0, 12), (12, 12), (183, 200)])
def test_the_interval_of_a_share_is_wilson_s(successes, count):
    known = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert share_interval(successes, count) == pytest.approx((known.low, known.high), abs=1e-12)
