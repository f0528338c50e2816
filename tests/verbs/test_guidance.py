"""Guidance of a model of classes, by command."""

import pytest
import torch

from bdia_exp.cli.configs import call, settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.identity import automatic, fitted_for, identity_of
from bdia_exp.store.image_sets import ImageSet
from tests.verbs.running import pngs, sample

MODEL = "model=fashion_guided"


@pytest.mark.quick
def test_a_run_says_its_guidance_and_its_rows(tmp_path, capsys):
    record = sample(tmp_path / "guided", MODEL, "images=4", "guidance=2")
    assert "nfe 3 (each of two rows: guidance)" in capsys.readouterr().out
    assert (record["nfe"], record["guidance"], record["rows_per_evaluation"]) == (3, 2.0, 2)
    assert record["identity"]["guidance"] == 2.0
    plain = sample(tmp_path / "plain", MODEL, "images=4")
    assert "rows_per_evaluation" not in plain
    assert "guidance" not in plain["identity"]
    assert pngs(tmp_path / "plain") != pngs(tmp_path / "guided")
    with pytest.raises(UserError, match="guidance"):
        sample(tmp_path / "guided", MODEL, "images=4", "guidance=3")


def test_guidance_1_is_a_run_without_guidance(tmp_path, capsys):
    sample(tmp_path, MODEL, "images=2")
    sample(tmp_path, MODEL, "images=2", "guidance=1")
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_coefficients_are_for_a_guidance():
    asked = {
        g: settings("sample", [MODEL, "sampler=iia_edm", "sampler.coefficients=auto", *words])
        for g, words in ((1, ["guidance=1"]), (None, []), (2, ["guidance=2"]), (3, ["guidance=3"]))
    }
    assert fitted_for(asked[None]) == fitted_for(asked[1])
    assert len({automatic(one) for one in asked.values()}) == 3
    assert fitted_for(asked[2])["guidance"] == 2
    assert identity_of(asked[2], {}) != identity_of(asked[3], {})


def test_an_edit_is_guided_both_ways(tmp_path):
    sample(tmp_path / "images", "images=2", "class=1")
    words = [
        f"images={tmp_path / 'images'}",
        MODEL,
        "sampler=bdia_ddim",
        "sampler.gamma=1",
        "nfe=6",
    ]
    made = {
        guidance: call(
            "edit", [*words, "to=3", f"guidance={guidance}", f"out={tmp_path / guidance}"]
        )
        for guidance in ("1", "2")
    }
    assert made["2"]["rows_per_evaluation"] == 2
    assert "rows_per_evaluation" not in made["1"]
    for record in made.values():
        assert record["pixel_error"]["rms"] < 1e-3, "the way back undoes the way to noise"
    edits = [ImageSet(tmp_path / guidance).read(range(2)) for guidance in made]
    assert not torch.equal(*edits)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "model=fashion_mini"],
        ["sample", MODEL, "diffusion=cld", "sampler=gddim"],
        ["fit", "model=fashion_mini", "sampler=iia_ddim"],
    ],
)
def test_a_model_without_it_refuses_it(words, tmp_path):
    command, *more = words
    with pytest.raises(UserError, match="guidance=2: guidance needs a model of texts, or one that"):
        call(command, [*more, "nfe=7", "guidance=2", f"out={tmp_path / command}"])
    assert not any(tmp_path.iterdir())
