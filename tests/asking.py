"""Verbs asked for by Python, for tests whose experiments have no configuration."""

from functools import partial
from pathlib import Path

from bdia_exp.cli.configs import settings
from bdia_exp.verbs.reproduce import Reproducing
from bdia_exp.verbs.reproduce import reproduce as reproduced
from bdia_exp.verbs.table import TableDrawing
from bdia_exp.verbs.table import table as tabled

compose = partial(settings, "sample")


def reproduce(experiment: dict, out: Path | None, compose=compose, **changes) -> dict:
    asked = {"limit": None, "cells": None, "repeats": None, "report": None, "overrides": None}
    asked |= {"batch": 64, "device": "cpu", "dry_run": False, "tflops": 30.0} | changes
    return reproduced(Reproducing(experiment=experiment, out=out and str(out), **asked), compose)


def table(experiment: dict, out: Path, report: str | None = None) -> dict:
    return tabled(TableDrawing(experiment=experiment, out=str(out), report=report))
