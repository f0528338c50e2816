"""Verbs asked for by Python, for experiments without a file; and mistakes on the command line."""

from functools import partial
from pathlib import Path

from click.testing import CliRunner

from bdia_exp.cli import main
from bdia_exp.cli.configs import settings
from bdia_exp.verbs.reproduce import Reproducing
from bdia_exp.verbs.reproduce import reproduce as reproduced
from bdia_exp.verbs.table import TableDrawing
from bdia_exp.verbs.table import table as tabled

compose = partial(settings, "sample")


def reproduce(experiment: dict, out: Path | None, compose=compose, **changes) -> dict:
    asked = {"limit": None, "cells": None, "repeats": None, "report": None, "overrides": None}
    asked |= {"batch": 64, "device": "cpu", "dry_run": False, "tflops": None} | changes
    return reproduced(Reproducing(experiment=experiment, out=out and str(out), **asked), compose)


def table(experiment: dict, out: Path, report: str | None = None) -> dict:
    return tabled(TableDrawing(experiment=experiment, out=str(out), report=report))


def one_sentence(*words: str) -> str:
    """The sentence by which a command is refused: exit status 1, and nothing written here."""
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 1, answer.output
    lines = answer.output.strip().splitlines()
    assert len(lines) == 1, answer.output
    assert lines[0].startswith("Error: ")
    assert not list(Path.cwd().iterdir()), "something is half-written"
    return lines[0]
