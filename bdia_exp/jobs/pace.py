"""How fast a device computes: the TFLOP/s from which a plan's hours are estimated."""

from dataclasses import dataclass
from pathlib import Path

from bdia_exp.errors import UserError
from bdia_exp.sources import fetch
from bdia_exp.store import records

GUESS = 30.0
"""TFLOP/s of a device that was not measured."""


@dataclass(frozen=True)
class Pace:
    """TFLOP/s that a device sustains, and where the number comes from, in words.

    `hours` are the hours of a plan: those of one GPU, unless a CPU was measured.
    """

    tflops: float
    source: str
    hours: str = "GPU hours"

    @classmethod
    def of(cls, given: float | None, device: str) -> "Pace":
        """The given number; else that measured on this device; else a guess.

        `device` is its name in a record. Raises UserError if the file of measurements is damaged.
        """
        if given is not None:
            return cls(given, "tflops=")
        found = _read().get(device)
        if found is None:
            return cls(GUESS, "a guess: give tflops=, or measure it with bench/calibrate.py")
        try:
            tflops, how = float(found["tflops"]), found["how"]
            if not tflops > 0:
                raise ValueError(f"{tflops} TFLOP/s")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{_file()} is damaged ({error}): remove it and run bench/calibrate.py again"
            ) from None
        hours = "hours on this CPU" if device.startswith("cpu") else cls.hours
        return cls(tflops, f"measured by bench/calibrate.py with {how}", hours)


def keep(device: str, tflops: float, how: str) -> Path:
    """Writes the measured speed of a device where `Pace.of` finds it; returns the file."""
    records.save(_file(), {**_read(), device: {"tflops": tflops, "how": how}})
    return _file()


def _file() -> Path:
    return fetch.cache() / "pace.json"


def _read() -> records.Record:
    return records.load(_file(), "remove it and run bench/calibrate.py again") or {}
