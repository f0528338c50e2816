"""Uncertainty of measured numbers: 95 % intervals, and paired differences of two runs.

The images of a run are divided into blocks by their seeds (modulo 20). A score is
computed from all images, and again without each block: the grouped jackknife. The spread of these
numbers gives the interval for the mean score of runs with other seeds and the same number of images
(FID decreases with the number of images, so it is not the interval of an infinite run).

Two runs with the same seeds start from the same noise. Their scores rise and fall together, so the
interval of their difference, block by block, is narrower than their own intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import ndtri, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number, and half of the width of its 95 % interval."""

    value: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half_width:.3f}"


def interval(value: float, without: Sequence[float]) -> Interval:
    """The interval of a score: its value, and its values without each of the blocks."""
    blocks = len(without)
    middle = math.fsum(without) / blocks
    variance = (blocks - 1) / blocks * math.fsum((one - middle) ** 2 for one in without)
    quantile = float(stdtrit(blocks - 1, (1 + LEVEL) / 2))
    return Interval(value, quantile * math.sqrt(variance))


def difference(
    a: float, a_without: Sequence[float], b: float, b_without: Sequence[float]
) -> Interval:
    """a − b of two runs with the same seeds, paired block by block."""
    return interval(a - b, [one - other for one, other in zip(a_without, b_without, strict=True)])


def mean(found: Sequence[Interval]) -> Interval:
    """The mean of several independent numbers: runs with other seeds."""
    half_width = math.hypot(*(one.half_width for one in found)) / len(found)
    return Interval(math.fsum(one.value for one in found) / len(found), half_width)


def share_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, `successes` of `count` independent tries (Wilson's)."""
    z2 = float(ndtri((1 + LEVEL) / 2)) ** 2
    middle = (successes + z2 / 2) / (count + z2)
    spread = math.sqrt(z2 * (successes * (count - successes) / count + z2 / 4)) / (count + z2)
    return max(middle - spread, 0.0), min(middle + spread, 1.0)


def verdict(found: Interval) -> str:
    """What a paired difference of a score shows, where smaller is better, in words."""
    if abs(found.value) <= found.half_width:
        return "no difference shown"
    return "better" if found.value < 0 else "worse"


def told(found: Interval, *, is_share: bool = False) -> str:
    """A number with its interval; a share in percent."""
    return _told(found, "", is_share)


def told_difference(found: Interval, *, is_share: bool = False) -> str:
    """A paired difference with its interval, and what it shows; a larger share is better."""
    judged = replace(found, value=-found.value) if is_share else found
    return f"{_told(found, '+', is_share)}, {verdict(judged)}"


def _told(found: Interval, sign: str, is_share: bool) -> str:
    scale, digits, unit = (100, 1, " %") if is_share else (1, 3, "")
    value, half_width = scale * found.value, scale * found.half_width
    return f"{value:{sign}.{digits}f} ± {half_width:.{digits}f}{unit}"
