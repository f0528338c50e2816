"""Output of the verbs, and checks of the values of keys."""

import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

from bdia_exp import dist
from bdia_exp.errors import UserError, nearest


def say(text: str) -> None:
    """Prints on rank 0, above any progress bar."""
    if dist.rank() == 0:
        tqdm.write(text, file=sys.stdout)


def warn(text: str) -> None:
    """Prints a warning to stderr on rank 0, above any progress bar."""
    if dist.rank() == 0:
        tqdm.write(f"Warning: {text}", file=sys.stderr)


INTERVAL = 60.0
"""Seconds between two lines of progress where there is no terminal."""


class _Lines(tqdm):
    """Progress in a log: now and then a plain line with the rate and the time left, on stderr.

    For tqdm it is a bar that is switched off, so nothing else is ever written.
    """

    def __init__(self, total: int, unit: str):
        super().__init__(total=total, disable=True)
        self.what, self.began = unit, time.monotonic()
        self.told = self.began

    def update(self, n: float | None = 1) -> bool | None:
        self.n += n or 0
        now = time.monotonic()
        if now - self.told < INTERVAL or not self.n:
            return False
        self.told, rate = now, self.n / (now - self.began)
        left = duration(max((self.total or 0) - self.n, 0) / rate)
        print(
            f"{self.n:,.0f} of {self.total:,} {self.what}, {rate:.3g} {self.what}/s, {left} left",
            file=sys.stderr,
            flush=True,
        )
        return True


def progress(total: int, unit: str) -> tqdm:
    """A progress bar on rank 0; without a terminal a plain line every INTERVAL seconds."""
    if dist.rank() == 0 and not sys.stderr.isatty():
        return _Lines(total, unit)
    layout = "{percentage:3.0f}% |{bar}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(total=total, unit=unit, bar_format=layout, disable=dist.rank() > 0, leave=False)


def duration(seconds: float) -> str:
    """The duration as a short text, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def positive(key: str, value: int | None, most: int | None = None) -> None:
    """Raises UserError unless the value is 1 or more, and at most `most`; None is accepted."""
    if value is not None and value < 1:
        raise UserError(f"{key}={value} must be 1 or more")
    if value is not None and most and value > most:
        raise UserError(f"{key}={value} must be at most {most}")


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raises UserError, with the most similar name, unless the value is known."""
    known = list(known)
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown{nearest(value, known)}")
