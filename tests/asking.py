"""Verbs and samplers asked for by Python, and mistakes on the command line."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from click.testing import CliRunner

from bdia_exp.cli import main
from bdia_exp.cli.configs import composed, settings
from bdia_exp.cli.files import options
from bdia_exp.jobs.settings import Sampling
from bdia_exp.samplers.cost import evaluations
from bdia_exp.samplers.linear import CLD
from bdia_exp.samplers.schedules import linear_vp
from bdia_exp.verbs.reproduce import Reproducing
from bdia_exp.verbs.reproduce import reproduce as reproduced
from bdia_exp.verbs.table import TableDrawing
from bdia_exp.verbs.table import table as tabled

compose = partial(settings, "sample")

OF_DIFFUSIONS = [
    name
    for name in options("sampler")
    if composed("sample", [f"sampler={name}"])[1]["grid"] == "quadratic_time"
]
"""The samplers that need diffusion=cld."""


def with_sampler(name: str, steps: int, *words: str) -> Sampling:
    """A run of `sample` with this sampler, without coefficients, on a grid of so many steps.

    tests/verbs/test_fit.py fits coefficients.
    """
    words = (f"sampler={name}", *words, *["sampler.rtol=1e9"] * (name == "cld_rk45"))
    asked = compose([*words])
    if asked.sampler.config.get("coefficients"):
        asked = compose([*words, "sampler.coefficients=null"])
    schedule = CLD() if "diffusion=cld" in words else linear_vp()
    return replace(asked, nfe=evaluations(asked.sampler.make, asked.grid.make(steps, schedule)))


def reproduce(experiment: dict, out: Path | None, compose=compose, **changes) -> dict:
    asked = {"limit": None, "cells": None, "repeats": None, "report": None, "overrides": None}
    asked |= {"batch": 64, "device": "cpu", "dry_run": False, "tflops": None} | changes
    return reproduced(Reproducing(experiment=experiment, out=out and str(out), **asked), compose)


def table(
    experiment: dict, out: Path, report: str | None = None, repeats: int | None = None
) -> dict:
    asked = {"out": str(out), "report": report, "repeats": repeats}
    return tabled(TableDrawing(experiment=experiment, **asked))


def one_sentence(*words: str) -> str:
    """The sentence by which a command is refused: exit status 1, and nothing written here."""
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 1, answer.output
    lines = answer.output.strip().splitlines()
    assert len(lines) == 1, answer.output
    assert lines[0].startswith("Error: ")
    assert not list(Path.cwd().iterdir()), "something is half-written"
    return lines[0]
