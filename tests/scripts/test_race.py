"""The race of samplers: what it measures, on few noises, and what it writes."""

import json
from functools import partial

import pytest
import torch

from tests.scripts.test_scripts import script


@pytest.fixture
def race(monkeypatch):
    """The script with two noises and a coarse fine solution."""
    module = script("race")
    monkeypatch.setattr(module, "SEEDS", range(5, 7))
    monkeypatch.setattr(module, "IMAGES", range(5, 6))
    monkeypatch.setattr(module, "fine_levels", partial(module.fine_levels, steps=9))
    return module


CELLS = [
    {"row": "A", "nfe": 5, "rms": 0.2, "median": 0.1},
    {"row": "B", "nfe": 5, "rms": 0.1, "median": 0.2},
    {"row": "A", "nfe": 9, "rms": 0.02, "median": 0.01},
    {"row": "B", "nfe": 9, "rms": 0.03, "median": 0.01},
]


def test_the_envelope_has_the_nearest_sampler_of_each_nfe(race):
    assert race.envelope(CELLS) == {5: "B", 9: "A"}
    text = race.markdown({"cells": CELLS, "reversible": []})
    assert "| A | 0.2000 | 0.0200 |" in text
    assert "Smallest RMS: NFE 5: B; NFE 9: A." in text


def test_both_races_are_run(race, monkeypatch, tmp_path):
    with torch.inference_mode():
        cells = race.sampling(tmp_path, {"DDIM": ["sampler=ddim"]}, [2, 4])
        assert 0 < cells[1]["rms"] < cells[0]["rms"]
        assert json.loads((tmp_path / "race.json").read_text())["cells"] == cells
        rows = {"BDIA": ["sampler=bdia_ddim"], "Rex": ["sampler=rex"]}
        monkeypatch.setattr(race, "REVERSIBLE", rows)
        bdia, rex = race.reversible(race.Prepared(), "quad", 5)
    assert (bdia["nfe"], rex["nfe"]) == (5, 4), "the nearest that is possible"
    assert bdia["image_float64"] < 1e-9 < bdia["image_float32"]
    assert bdia["growth"] == 1
    both = [bdia, rex]
    assert race.reversible(race.Prepared(), "quad", 5, both) == both
    assert "## VP levels (quad), about 5 evaluations" in race.markdown(
        {"cells": cells, "reversible": both}
    )


def test_rows_are_compared_by_pairs_of_seeds(race, monkeypatch):
    cells = [
        {"row": row, "column": "5", "fid": fid, "fid_without_block": [[fid - 0.01, fid + 0.01]]}
        for row, fid in (("A", 2.0), ("B", 1.0))
    ]
    monkeypatch.setattr(race, "PAIRS", [("A", "B")])
    text = race.paired({"columns": ["5"], "cells": cells})
    assert "| A − B | 1.000 ± 0.000, worse |" in text
