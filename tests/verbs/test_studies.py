"""Studies: what they measure is what is known, and nothing is measured twice."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp import overrides
from bdia_exp.cli.configs import call, settings
from bdia_exp.cli.files import options
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.jobs.identity import plainly
from bdia_exp.jobs.problems import problems_of
from bdia_exp.report import figures
from bdia_exp.samplers.fitted import rms
from bdia_exp.store.cache import Cells
from bdia_exp.verbs.convergence import ConvergenceStudy, order
from bdia_exp.verbs.convergence import convergence as converge
from bdia_exp.verbs.sweep import _experiment
from tests.asking import compose, one_sentence

TOY = ["device=cpu", "count=4"]


def run(command: str, out: Path, *words: str) -> dict:
    (overrides,) = expand(command, (*words, f"out={out}"), multirun=False)
    return call(command, overrides)


def written(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.glob("cells/*.json")}


def assert_drawn(path: Path) -> None:
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("L"))
    assert pixels.shape[0] > 300
    assert pixels.std() > 5


# --- convergence ---

KNOWN = {"ddim": 1, "bdia_ddim": 2, "bdia_ddim sampler.gamma=0.5": 1, "euler": 1, "edm": 2}
SAMPLERS = "samplers=" + ",".join(KNOWN)


@pytest.fixture(scope="module")
def convergence(tmp_path_factory):
    out = tmp_path_factory.mktemp("convergence")
    words = [*TOY, SAMPLERS, "steps=32,64", "problems=gaussian,mixture"]
    return out, words, run("convergence", out, *words)


def test_measured_orders_are_the_known_ones(convergence):
    _, _, study = convergence
    for problem in study["problems"]:
        measured = {row["sampler"]: row["order"] for row in problem["rows"]}
        assert measured == pytest.approx(KNOWN, abs=0.2)
        nfe = {row["sampler"]: row["nfe"] for row in problem["rows"]}
        assert nfe["ddim"] == [32, 64]
        assert nfe["edm"] == [64, 128]


def test_a_study_leaves_a_table_numbers_and_a_plot(convergence):
    out, _, study = convergence
    text = (out / "convergence.md").read_text()
    assert "## gaussian" in text
    assert "bdia_ddim sampler.gamma=0.5" in text
    assert json.loads((out / "convergence.json").read_text()) == study
    assert {"commit", "versions", "config"} <= study.keys()
    assert_drawn(out / "convergence.png")


def test_only_what_is_missing_is_computed_again(convergence):
    out, words, study = convergence
    before = written(out)
    gone = next(name for name in before if name.startswith("mixture-edm-64"))
    (out / "cells" / gone).unlink()
    assert run("convergence", out, *words) == study
    after = written(out)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [gone]


@pytest.mark.quick
def test_a_label_may_stand_for_overrides(tmp_path):
    given = [{"BDIA": ["sampler=bdia_ddim", "sampler.gamma=0.5"]}, "bdia_ddim sampler.gamma=0.5"]
    asked = ConvergenceStudy(
        problems=["gaussian"],
        samplers=given,
        steps=[2, 4],
        count=1,
        sigma_min=0.01,
        sigma_max=10.0,
        device="cpu",
        out=str(tmp_path),
    )
    study = converge(asked, compose)
    labelled, named = study["problems"][0]["rows"]
    assert (labelled["sampler"], named["sampler"]) == ("BDIA", given[1])
    assert labelled["errors"] == named["errors"]


def test_order_is_the_slope_above_the_noise():
    steps = [8, 16, 32, 64]
    errors = [n**-3.0 for n in steps]
    assert order(steps, errors, 0.0) == pytest.approx(3)
    assert order(steps, [*errors[:3], 1e-6], 1e-6) == pytest.approx(3)
    assert order(steps, [*errors[:3], None], 0.0) == pytest.approx(3)
    assert order(steps, errors, 1.0) is None
    assert order(steps, [0.1, 0.1, 0.1, 0.2], 0.0) is None


def test_every_sampler_with_an_order_is_studied_by_default():
    named = {shlex.split(name)[0] for name in settings("convergence", []).samplers}
    of_diffusions = {"gddim", "gddim_multistep", "gddim_pc", "gddim_sde", "em", "sscs", "cld_rk45"}
    of_grids = {
        "iia_edm",
        "biia_edm",
        "iia_ddim",
        "iia_spndm",
        "iia_ipndm",
        "iia_dpmpp",
        "ab_fitted",
    }
    assert named == {*options("sampler")} - {"edm_churn"} - of_diffusions - of_grids


def test_a_model_is_studied_as_a_density_is(tmp_path):
    study = run(
        "convergence", tmp_path, *TOY, "problems=fashion_mini", "samplers=ddim,edm", "steps=1"
    )
    (problem,) = study["problems"]
    assert len(problem["identity"]["checkpoint_sha256"]) == 64
    assert problem["floor"] > 0
    assert [row["levels"] for row in problem["rows"]] == ["arc", "edm"]
    assert all(error > 0 for row in problem["rows"] for error in row["errors"])
    assert [row["nfe"] for row in problem["rows"]] == [[1], [2]]


# --- exactness ---


@pytest.fixture(scope="module")
def exactness(tmp_path_factory):
    out = tmp_path_factory.mktemp("exactness")
    words = [*TOY, "problems=mixture", "gammas=1,0.5", "steps=10,20,40", "samplers=ddim,edict"]
    return out, words, run("exactness", out, *words)


def rows(study: dict) -> dict[tuple[str, str, str], dict]:
    return {
        (row["method"], row["state"], row["start"]): row
        for problem in study["problems"]
        for row in problem["rows"]
    }


@pytest.mark.parametrize("start", ["image", "noise"])
@pytest.mark.parametrize("gamma", ["1", "0.5"])
def test_fixed_point_gives_back_every_bit(exactness, start, gamma):
    row = rows(exactness[2])[f"bdia_ddim γ={gamma}", "fixed", start]
    assert row["max"] == row["rms"] == [0, 0, 0]


def test_errors_grow_with_one_over_gamma(exactness):
    found = rows(exactness[2])
    exact, half = (found[f"bdia_ddim γ={g}", "float64", "noise"] for g in ("1", "0.5"))
    assert max(exact["rms"]) < 1e-14
    growth = np.log2(half["rms"][2] / half["rms"][0])
    assert growth == pytest.approx(30, abs=8), "a factor of 1/γ a step"
    assert half["predicted"] == pytest.approx([2.0 ** (n - 1) * 2.0**-52 for n in (10, 20, 40)])
    single = found["bdia_ddim γ=0.5", "float32", "noise"]
    assert single["rms"][1] / half["rms"][1] == pytest.approx(2**29, rel=0.99)
    latent = found["bdia_ddim γ=0.5", "float64", "image"]["latent"]
    assert latent[2] > 1e4 * latent[0]


@pytest.mark.quick
def test_ddim_s_inversion_is_not_exact_and_edict_s_is(exactness):
    found = rows(exactness[2])
    for time in ("target", "own"):
        assert min(found[f"ddim, time {time}", "float64", "image"]["rms"]) > 1e-3
    assert max(found["edict", "float64", "image"]["rms"]) < 1e-12
    assert ("edict", "fixed", "image") not in found


def test_round_trips_are_not_made_twice(exactness):
    out, words, study = exactness
    before = written(out)
    assert run("exactness", out, *words) == study
    assert written(out) == before
    assert_drawn(out / "exactness.png")
    assert "every bit" in (out / "exactness.md").read_text()


def test_a_model_s_own_images_come_back(tmp_path):
    words = [
        *TOY,
        "problems=fashion_mini",
        "gammas=1",
        "samplers=[]",
        "steps=2",
        "states=float64,fixed",
    ]
    found = rows(run("exactness", tmp_path, *words))
    assert found["bdia_ddim γ=1", "fixed", "image"]["max"] == [0]
    assert found["bdia_ddim γ=1", "float64", "image"]["rms"][0] < 1e-14
    assert 0.1 < found["bdia_ddim γ=1", "float64", "image"]["scale"][0] < 1


# --- sweep ---


@pytest.mark.parametrize(
    ("gammas", "rows"),
    [
        ("[0.9999999,1]", ["γ=0.9999999", "γ=1"]),
        ("[0,0.5,0.95,1e-5]", ["γ=0", "γ=0.5", "γ=0.95", "γ=1e-05"]),
    ],
)
def test_each_gamma_of_a_sweep_has_a_row(gammas, rows):
    asked = settings("sweep", [f"gammas={gammas}", "nfes=[5]", "samplers=[bdia_edm]"])
    (table,) = _experiment(asked, compose)[0]["tables"]
    assert list(table["rows"]) == rows


def test_a_sweep_begins_with_the_meeting_of_its_processes(tmp_path, monkeypatch):
    """Before it every process takes itself for the first, and says what one is to say."""

    def start(device: str) -> None:
        raise UserError(f"met on {device}")

    def told(note: str) -> None:
        raise AssertionError(note)

    monkeypatch.setattr("bdia_exp.dist.start", start)
    monkeypatch.setattr("bdia_exp.verbs.sweep.say", told)
    with pytest.raises(UserError, match="met on cpu"):
        run("sweep", tmp_path, "nfes=[4]", "samplers=[bdia_edm]", "dry_run=true")


@pytest.mark.quick
def test_a_sweep_measures_and_draws_fid_over_gamma_and_nfe(tmp_path):
    words = ["samplers=bdia_edm", "gammas=0,1", "nfes=2,3", "images=80", "batch=80", "device=cpu"]
    drawn = run("sweep", tmp_path, *words)
    (table,) = drawn["tables"]
    assert (table["rows"], table["columns"]) == (["γ=0", "γ=1"], ["1", "3"])
    assert [cell["nfe"] for cell in table["cells"]] == [1, 3, 1, 3]
    text = (tmp_path / "sweep.md").read_text()
    assert "bdia_edm cannot spend every NFE, so it ran at: 2 → 1." in text
    assert "- bdia_edm at NFE 3: γ=" in text
    assert_drawn(tmp_path / "sweep.png")
    records = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cells/*/record.json")}
    assert len(records) == 4
    assert run("sweep", tmp_path, *words) == drawn
    assert all(file.stat().st_mtime_ns == time for file, time in records.items())


def test_a_heat_map_with_a_missing_cell_is_drawn(tmp_path):
    fids = {("γ=0", "9"): 5.0, ("γ=1", "9"): 76.0, ("γ=0", "19"): 0.85}
    made = [
        {"row": row, "column": column, "fid": fid, "note": "a test", "images": 80}
        for (row, column), fid in fids.items()
    ]
    table = {"title": "t", "rows": ["γ=0", "γ=1"], "columns": ["9", "19", "35"], "cells": made}
    figures.heat_maps({"tables": [table]}, tmp_path / "sweep.png")
    assert_drawn(tmp_path / "sweep.png")


# --- what a user can mend ---

MISTAKES = {
    "convergence samplers=ddmi": "did you mean 'ddim'?",
    "convergence samplers=[]": "give samplers=",
    "convergence samplers=edm_churn": "draws noise, so it has no order",
    "convergence samplers='rex sampler.predicts=data sampler.sde=em'": "draws noise, so it has no",
    "convergence samplers='ddim nfe=3'": "'nfe=3' of 'ddim nfe=3' cannot be changed",
    "convergence samplers='ddim sampler.gama=1'": "did you mean 'sampler.gamma'?",
    "convergence problems=gausian samplers=ddim": "neither one of gaussian, mixture nor a model",
    "convergence steps=0": "steps=0 must be whole numbers, 1 or more",
    "convergence steps=8,many": "steps=8,many must be whole numbers",
    "convergence steps=2.5": "steps=2.5 must be whole numbers",
    "convergence count=0": "count=0 must be 1 or more",
    "convergence sigma_min=100": "0 < min < max",
    "convergence problems=fashion_mini sigma_max=900 samplers=ddim": "sigma_max=900 is beyond",
    "convergence -p 2": "-p is for evaluate,",
    "exactness gammas=0": "gammas=0 must be above 0 and at most 1",
    "exactness gammas=1.5": "gammas=1.5 must be above 0 and at most 1",
    "exactness gammas=0.12345": "denominator over 1024",
    "exactness samplers=edm": "this sampler has no inverse",
    "exactness states=float16": "states='float16' is unknown",
    "exactness states=[]": "give states=: any of float64, float32, fixed",
    "exactness problems=nothing": "neither one of gaussian, mixture nor a model",
    "exactness steps=[10,0]": "steps=10,0 must be whole numbers",
    "sweep gammas=2": "gammas=2 must be 0 to 1",
    "sweep samplers=edict": "edict has no γ (no key sampler.gamma): leave it out",
    "sweep nfes=0": "nfes=0 must be whole numbers",
    "sweep models=fashion_min": "did you mean 'fashion_mini'?",
    "sweep images=0": "images=0 must be 1 or more",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_get_one_sentence(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[words] in one_sentence(*shlex.split(words))


def test_numbers_are_read_as_lists_texts_or_alone():
    assert overrides.numbers("x", "1,0.5") == overrides.numbers("x", [1, 0.5, 1]) == [1.0, 0.5]
    assert overrides.whole_numbers("x", 8) == overrides.whole_numbers("x", "8") == [8]
    with pytest.raises(UserError):
        overrides.numbers("x", None)


def test_results_are_told_apart_by_their_identity(tmp_path):
    kept, calls = Cells(tmp_path, plainly, "study"), []

    def compute() -> dict:
        calls.append(1)
        return {"value": len(calls)}

    assert kept.get("a γ=1", {"n": 1}, {"value": (int,)}, compute, "cpu")["value"] == 1
    assert kept.get("a γ=1", {"n": 1}, {"value": (int,)}, compute, "cpu")["value"] == 1
    assert kept.get("a γ=1", {"n": 2}, {"value": (int,)}, compute, "cpu")["value"] == 2
    assert all(name.startswith("a_gamma=1-") for name in written(tmp_path))
    with pytest.raises(UserError, match=r"its value cannot be 1\): remove it and run again"):
        kept.get("a γ=1", {"n": 1}, {"value": (str,)}, compute, "cpu")
    assert rms(torch.tensor([3.0, -3.0])) == 3


STUDIES = {
    "convergence": ("problems=gaussian", "samplers=ddim", "steps=1,2"),
    "exactness": ("problems=mixture", "gammas=1", "samplers=[]", "states=float64", "steps=4"),
}


def test_an_exact_density_is_computed_on_the_cpu():
    (gaussian,) = problems_of(["gaussian"], 2, "cuda", compose)
    assert (gaussian.device, gaussian.images.device.type) == ("cpu", "cpu")


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_names_the_devices_of_all_its_results(study, tmp_path):
    words = [*TOY, *STUDIES[study]]
    here = run(study, tmp_path, *words)["device"]
    cell, *_ = tmp_path.glob("cells/*.json")
    result = json.loads(cell.read_text())
    assert result.pop("device") == here
    cell.write_text(json.dumps(result | {"device": "a GPU"}))
    both = run(study, tmp_path, *words)
    assert both["device"] == f"a GPU; {here}"
    # A result of an earlier release does not name its device, but its study does.
    cell.write_text(json.dumps(result))
    (tmp_path / f"{study}.json").write_text(json.dumps(both | {"device": "an old GPU"}))
    assert run(study, tmp_path, *words)["device"] == f"an old GPU; {here}"


@pytest.mark.parametrize("study", STUDIES)
def test_a_result_that_lacks_something_is_measured_again(study, tmp_path):
    words = [*TOY, *STUDIES[study]]
    whole = run(study, tmp_path, *words)
    for cell in tmp_path.glob("cells/*.json"):
        result = json.loads(cell.read_text())
        cell.write_text(json.dumps({"identity": result["identity"]}))
    assert run(study, tmp_path, *words) == whole
