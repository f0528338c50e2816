"""Output in every encoding: no traceback, and texts that can be read."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from bdia_exp.cli import main

PLAN = ["reproduce", "demo", "dry_run=true", "cells=BDIA-EDM"]


@pytest.mark.parametrize(
    ("charset", "row"),
    [("utf-8", "γ=1 at 9"), ("latin-1", "gamma=1 at 9"), ("ascii", "gamma=1 at 9")],
)
def test_a_plan_is_printed_in_every_encoding(charset, row, tmp_path):
    answer = CliRunner(charset=charset).invoke(main, [*PLAN, f"out={tmp_path}"])
    assert answer.exit_code == 0, answer.exception
    assert f"BDIA-EDM {row}" in answer.output
    told = CliRunner(charset=charset).invoke(main, ["sample", "nfe=3", "prompt=甲±"])
    assert "prompt=" in told.output
    assert told.exit_code == 1


def test_a_c_locale_reads_our_files_and_prints_plain_text(tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "bdia_exp", *PLAN, f"out={tmp_path}"],
        env=os.environ | locale,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "BDIA-EDM gamma=1 at 9" in done.stdout.decode("ascii")
    assert done.stderr == b""  # no progress bar, no traceback
