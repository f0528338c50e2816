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

    def __init__(self, total: int | None, unit: str, done: int = 0):
        super().__init__(total=total, initial=done, disable=True)
        self.n, self.what, self.before = done, unit, done
        self.told = self.began = time.monotonic()

    def update(self, n: float | None = 1) -> bool | None:
        self.n += n or 0
        now = time.monotonic()
        if now - self.told < INTERVAL or self.n == self.before:
            return False
        self.told, rate = now, (self.n - self.before) / (now - self.began)
        text = _amount(self.n, self.what)
        if self.total is not None:
            text = text.removesuffix(f" {self.what}") + f" of {_amount(self.total, self.what)}"
        text += f", {_amount(rate, self.what, digits=3)}/s"
        if self.total is not None:
            text += f", {duration(max(self.total - self.n, 0) / rate)} left"
        print(text, file=sys.stderr, flush=True)
        return True


def _amount(number: float, unit: str, digits: int | None = None) -> str:
    if unit == "B":
        return str(tqdm.format_sizeof(number, unit))
    return f"{number:.{digits}g} {unit}" if digits else f"{number:,.0f} {unit}"


def progress(total: int | None, unit: str, done: int = 0) -> tqdm:
    """A progress bar on rank 0; without a terminal a plain line every INTERVAL seconds.

    `done` of the total were done before. The unit B is for bytes; their total can be unknown.
    """
    if dist.rank() == 0 and not sys.stderr.isatty():
        return _Lines(total, unit, done)
    layout = "{percentage:3.0f}% |{bar}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}, {rate_fmt}]"
    if unit == "B":
        layout = "{l_bar}{bar}{r_bar}"
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        unit_scale=unit == "B",
        bar_format=layout,
        disable=dist.rank() > 0,
        leave=False,
    )


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
