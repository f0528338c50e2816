"""The race of samplers: what it measures, on few noises, and what it writes."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from bdia_exp import batching
from bdia_exp.errors import UserError
from bdia_exp.store.records import Record
from tests.scripts.test_scripts import SCRIPTS, script


@pytest.fixture
def race(monkeypatch):
    """The script with two noises and a coarse fine solution."""
    monkeypatch.setattr(batching, "ROWS", 2)
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
    kept = race.Cells(tmp_path, race.plainly, "race")
    with torch.inference_mode():
        cells = race.sampling(kept, {"DDIM": ["sampler=ddim"]}, [2, 4])
        assert 0 < cells[1]["rms"] < cells[0]["rms"]
        rows = {"BDIA": ["sampler=bdia_ddim"], "Rex": ["sampler=rex"]}
        monkeypatch.setattr(race, "REVERSIBLE", rows)
        bdia, rex = race.reversible(kept, race.Prepared(), "quad", 5)
    assert (bdia["nfe"], rex["nfe"]) == (5, 4), "the nearest that is possible"
    assert bdia["image_float64"] < 1e-9 < bdia["image_float32"]
    assert bdia["growth"] == 1
    assert "## VP levels (quad), about 5 evaluations" in race.markdown(
        {"cells": cells, "reversible": [bdia, rex]}
    )


@pytest.fixture
def run(race, monkeypatch, tmp_path):
    """Runs the script with these rows in both races, at 3 evaluations; returns race.json."""
    monkeypatch.setattr(race, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(race, "SPENT", (3,))
    monkeypatch.setattr(race, "GRIDS", {"karras": "EDM's levels"})
    monkeypatch.setattr(sys, "argv", ["race.py", str(tmp_path), "--nfes", "3"])
    (tmp_path / "configs/experiment").mkdir(parents=True)

    def run(rows: dict[str, list[str]]) -> Record:
        OmegaConf.save({"tables": [{"rows": rows}]}, tmp_path / "configs/experiment/race.yaml")
        monkeypatch.setattr(race, "REVERSIBLE", rows)
        race.main()
        return json.loads((tmp_path / "race.json").read_text())

    return run


def written(root: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in root.glob("cells/*.json")}


def test_what_was_measured_outlives_a_rerun_that_stops(run, tmp_path):
    rows = {"DDIM": ["sampler=ddim"]}
    first, files = run(rows), written(tmp_path)
    assert len(files) == 2
    with pytest.raises(UserError, match="sampler=nothing"):
        run({"Euler": ["sampler=euler"], "wrong": ["sampler=nothing"], **rows})
    again = run(rows)
    assert [again[key] for key in ("cells", "reversible")] == [
        first[key] for key in ("cells", "reversible")
    ]
    assert files.items() <= written(tmp_path).items()


def test_a_row_with_other_overrides_is_measured_anew(run, tmp_path):
    half = run({"BDIA": ["sampler=bdia_ddim", "sampler.gamma=0.5"]})
    (tmp_path / "race.json").write_text(json.dumps(half | {"commit": "an earlier one"}))
    one = run({"BDIA": ["sampler=bdia_ddim"]})
    assert half["cells"][0]["rms"] != one["cells"][0]["rms"]
    assert [half["reversible"][0]["growth"], one["reversible"][0]["growth"]] == [4, 1]
    assert one["commit"] != "an earlier one"


def test_the_results_of_the_repository_are_not_measured_again(monkeypatch):
    race, root = script("race"), SCRIPTS.parent / "results/race"
    monkeypatch.setattr(race.Prepared, "job", lambda *_: pytest.fail("it is measured again"))
    kept = race.Cells(root, race.plainly, "race")
    before = json.loads((root / "race.json").read_text())
    (table,) = OmegaConf.load(race.CONFIGS / "experiment/race.yaml").tables
    found = race.sampling(kept, OmegaConf.to_container(table.rows), [5])
    assert found == [cell for cell in before["cells"] if cell["nfe"] == 5]
    found = race.reversible(kept, race.Prepared(), "karras", 20)
    assert found == [
        cell for cell in before["reversible"] if (cell["grid"], cell["asked"]) == ("karras", 20)
    ]


def test_rows_are_compared_by_pairs_of_seeds(race, monkeypatch):
    cells = [
        {"row": row, "column": "5", "fid": fid, "fid_without_block": [[fid - 0.01, fid + 0.01]]}
        for row, fid in (("A", 2.0), ("B", 1.0))
    ]
    monkeypatch.setattr(race, "PAIRS", [("A", "B")])
    text = race.paired({"columns": ["5"], "cells": cells})
    assert "| A − B | 1.000 ± 0.000, worse |" in text
