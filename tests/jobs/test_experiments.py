"""Experiments: the runs of a table, what they cost, and what they lack."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from bdia_exp import dist
from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.jobs import experiments
from bdia_exp.jobs.asked import Choice
from bdia_exp.jobs.plan import Costs, Needs
from bdia_exp.jobs.references import same_score
from tests import asking
from tests.asking import compose
from tests.models.countable import DECODING, EVALUATION, Latent

TINY = {
    "name": "tiny",
    "title": "A tiny experiment",
    "images": 1000,
    "repeats": 3,
    "report": "min",
    "tables": [
        {
            "name": "here",
            "title": "What can run",
            "axis": "NFE",
            "common": ["model=fashion_mini"],
            "rows": {"EDM": ["sampler=edm"]},
            "columns": {"1": ["nfe=1"], "3": ["nfe=3"]},
        },
        {
            "name": "elsewhere",
            "title": "What cannot",
            "axis": "NFE",
            "common": ["model=fashion_mini", "model.checkpoint=/not/here.safetensors"],
            "rows": {"EDM": ["sampler=edm"]},
            "columns": {"1": ["nfe=1"]},
        },
    ],
}
HERE = {**TINY, "tables": TINY["tables"][:1]}
reproduce = partial(asking.reproduce, limit=70, batch=70)


def test_records_of_before_a_key_count_as_done():
    """They were scored as the key's default has it; any other value is another score."""
    words = ["features=inception", "images=70"]
    new = compose(words)
    old = json.loads(json.dumps(new.plain()))
    del old["resize"], old["features"]["dim"]
    assert same_score({"config": old}, new)
    for other in ("resize=256", "features.dim=64", "metrics=[fid,prc]", "reference=other.npz"):
        assert not same_score({"config": old}, compose([*words, other]))


def test_a_cell_has_a_run_for_every_seed_range(tmp_path):
    cells = experiments.cells_of(HERE, tmp_path)
    runs = experiments.runs_of(
        cells[:1], images=70, starts=range(0, 3000, 1000), settings=["batch=70"], compose=compose
    )
    assert [r.asked.seeds for r in runs] == ["0-69", "1000-1069", "2000-2069"]
    assert [r.root.name for r in runs] == [
        "here-EDM-1",
        "here-EDM-1-from1000",
        "here-EDM-1-from2000",
    ]
    assert [r.asked.plain()["seeds"] for r in runs] == [r.asked.seeds for r in runs]
    assert [r.evaluations for r in runs] == [70, 70, 70]


def test_seed_ranges_are_run_resumed_and_reported(tmp_path, capsys):
    reproduce(HERE, tmp_path, repeats=1)
    first = (tmp_path / "cells/here-EDM-1/record.json").stat().st_mtime_ns
    drawn = reproduce(HERE, tmp_path, cells="at 1")
    assert (tmp_path / "cells/here-EDM-1/record.json").stat().st_mtime_ns == first
    assert "1 of 3 runs are there, 2 to run: 140 network evaluations" in capsys.readouterr().out
    one, other = drawn["tables"][0]["cells"]
    assert one["seeds"] == ["0-69", "1000-1069", "2000-2069"]
    assert len(set(one["fids"])) == 3
    assert one["fid"] == pytest.approx(sum(one["fids"]) / 3)
    assert one["fid_min"] == min(one["fids"])
    assert other["seeds"] == ["0-69"]
    again = asking.table(HERE, tmp_path, "mean")
    assert again["tables"][0]["cells"][0]["fid"] == pytest.approx(sum(one["fids"]) / 3)
    with pytest.raises(UserError, match="did you mean 'min'"):
        asking.table(HERE, tmp_path, "mni")


@pytest.mark.quick
def test_overrides_reach_every_cell(tmp_path):
    reproduce(HERE, tmp_path, repeats=1, cells="at 3", overrides="sampler.gamma=0.5")
    record = (tmp_path / "cells/here-EDM-3/record.json").read_text()
    assert '"gamma": 0.5' in record
    with pytest.raises(UserError, match=r"sampler.gamma was 0.5, now the default"):
        reproduce(HERE, tmp_path, repeats=1, cells="at 3")


def test_overrides_cannot_undo_what_a_cell_is(tmp_path):
    for word in ("nfe=9", "sampler=ddim", "score=false", "images=5", "batch=3", "+seeds=7"):
        key = word.lstrip("+").partition("=")[0]
        with pytest.raises(UserError, match=rf"overrides: {key} of here: EDM at 1 cannot be"):
            reproduce(HERE, tmp_path, overrides=word)
    assert not list(tmp_path.iterdir())


def test_overrides_have_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for overrides in (None, "sampler.gamma=0.5", "sampler.gamma=0.25"):
        reproduce(HERE, None, repeats=1, cells="at 1", overrides=overrides)
    names = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert len(names) == 3
    assert names[0] == "tiny-70"
    assert all(name.startswith("tiny-70") for name in names)


@pytest.mark.parametrize("cells", ["at 3,", "at 1,at 3", 1, "EDM"])
def test_cells_are_chosen_by_words(tmp_path, cells, capsys):
    reproduce(TINY, tmp_path, cells=cells, dry_run=True, repeats=1)
    expected = {"at 3,": 1, "at 1,at 3": 3, 1: 2, "EDM": 3}[cells]
    assert f"{expected} cells of 70 images" in capsys.readouterr().out


@pytest.mark.parametrize("cells", ["here,imagnet", "nonsense"])
def test_a_word_that_chooses_nothing_is_refused(tmp_path, cells):
    with pytest.raises(UserError, match=r"cells=(imagnet|nonsense): no cell of tiny"):
        reproduce(TINY, tmp_path, cells=cells, dry_run=True)


def test_rank_0_decides_what_is_to_run(tmp_path, monkeypatch, capsys):
    """Or ranks with other disks would run other cells at one time, and mix their numbers."""
    monkeypatch.setattr(dist, "broadcast", lambda todo: todo[1:])
    reproduce(HERE, tmp_path, repeats=1, dry_run=True)
    assert "1 of 2 runs are there, 1 to run" in capsys.readouterr().out


def test_what_one_rank_lacks_no_rank_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(Needs, "lacking", lambda self, run: ["nor has rank 0"])
    monkeypatch.setattr(dist, "gather", lambda mine: [mine, {0: ["rank 1 has no disk"]}])
    with pytest.raises(
        UserError, match=r"2 of 2 runs could not start:\n  nor has rank 0\n  rank 1 has no disk"
    ):
        reproduce(HERE, tmp_path, repeats=1)


def test_the_report_is_checked_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="did you mean 'mean'"):
        reproduce(HERE, tmp_path, report="mea", dry_run=True)


def test_another_reference_is_another_score(tmp_path, capsys):
    """The images would be the same, the number is not."""
    reproduce(HERE, tmp_path, repeats=1, cells="at 1")
    reproduce(HERE, tmp_path, repeats=1, cells="at 1", overrides="metrics=[isc]", dry_run=True)
    plan = capsys.readouterr().out.splitlines()
    assert "0 of 1 runs are there, 1 to run" in next(line for line in plan[::-1] if "cells" in line)


def test_what_can_run_runs_and_what_cannot_is_named(tmp_path, capsys):
    with pytest.raises(UserError) as error:
        reproduce(TINY, tmp_path, repeats=1)
    told = str(error.value)
    assert "1 of 3 runs could not start" in told
    assert told.count("nothing is at /not/here.safetensors") == 1
    assert (tmp_path / "tables.md").exists()
    out = capsys.readouterr().out
    assert "What can run" in out
    assert "What cannot" not in out
    assert "[2/2] here: EDM at 3, seeds 0-69, about" in out


def test_nothing_can_run(tmp_path):
    with pytest.raises(UserError, match="1 of 1 runs could not start"):
        reproduce(TINY, tmp_path, repeats=1, cells="elsewhere")
    assert not list(tmp_path.iterdir())


def test_published_models_without_files_say_all_that_is_missing(tmp_path, monkeypatch):
    """Checkpoint, statistics and Inception's weights, each by name; and the plan stands."""
    from omegaconf import OmegaConf

    from bdia_exp.cli.configs import composed

    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    experiment = OmegaConf.to_container(composed("reproduce", ["experiment=table3"])[0].experiment)
    with pytest.raises(UserError) as error:
        reproduce(experiment, tmp_path / "out", limit=3000, cells="cifar10: EDM")
    told = str(error.value)
    assert "6 of 6 runs could not start" in told
    for file in (
        "edm-cifar10-32x32-cond-vp.pkl",
        "edm-fid-ref-cifar10-32x32.npz",
        "weights-inception-2015-12-05-6726825d.pth",
    ):
        assert f"{file} is not here" in told


def test_the_dry_run_reckons_the_published_tables_without_their_files(
    tmp_path, monkeypatch, capsys
):
    from omegaconf import OmegaConf

    from bdia_exp.cli.configs import composed

    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    for name, runs in {"table3": 48, "table2": 12, "table2-grid": 24}.items():
        config = composed("reproduce", [f"experiment={name}"])[0]
        experiment = OmegaConf.to_container(config.experiment)
        assert reproduce(experiment, tmp_path, limit=None, dry_run=True) == {}
        out = capsys.readouterr().out
        assert f"0 of {runs} runs are there, {runs} to run" in out
        assert "GPU hours" in out
        assert "  memory of " in out
        assert "  memory of the score: 1.3 GB in each process, sums of 2,048 features\n" in out
        assert "  disk: at most " in out
        assert "not here yet: fetch:" in out
    assert not list(tmp_path.iterdir())


def test_gpu_hours_are_evaluations_times_operations_over_speed(tmp_path, capsys):
    cells = experiments.cells_of(HERE, tmp_path)
    runs = experiments.runs_of(cells, images=1000, starts=[0], settings=[], compose=compose)
    costs = Costs()
    flops = costs.of(runs[0]).flops
    assert costs.flops(runs) == (pytest.approx(4000 * flops), 0)
    reproduce(HERE, tmp_path, limit=None, repeats=1, dry_run=True, tflops=flops * 4000 / 3600e12)
    assert "4,000 network evaluations, 1.0 GPU hours" in capsys.readouterr().out
    with pytest.raises(UserError, match="tflops=0 must be more than 0"):
        reproduce(HERE, tmp_path, dry_run=True, tflops=0)


def test_a_model_of_text_pays_for_decoding_and_guidance(tmp_path, capsys):
    """What is reckoned of Stable Diffusion, on a model of its kind."""
    experiment = {**HERE, "common": ["nfe=3"], "images": 2000}

    def latent(words):
        asked = compose([word for word in words if not word.startswith("guidance=")])
        guidance = [float(w.split("=")[1]) for w in words if w.startswith("guidance=")]
        model = Choice("latent", asked.model.config, Latent)
        return replace(
            asked, model=model, prompt="a shoe", guidance=guidance[0] if guidance else None
        )

    def told(**changes) -> tuple[str, list[str]]:
        settings = {"limit": None, "cells": "at 1", "repeats": 2, "dry_run": True, "batch": 1000}
        reproduce(experiment, tmp_path, compose=latent, **(settings | changes))
        first, *lines = capsys.readouterr().out.splitlines()
        return first, lines[-3:]

    tflops = 4000 * DECODING / 3600e12  # an hour of decoding
    first, lines = told(tflops=tflops)
    sampling = 2 * EVALUATION / DECODING
    assert f"4,000 network evaluations, {sampling + 1:.1f} GPU hours" in first
    assert lines == [
        f"  GPU hours: sampling {sampling:.1f}, decoding 1.0, at {tflops:g} TFLOP/s sustained "
        "(tflops=)",
        "  memory of latent: weights 0 MB (parameters: U-Net 0.0 M, VAE 0.0 M), "
        "working set at batch=1000 about 7 MB (sampling) and 0 MB (decoding beside it)",
        "  disk: at most 25 MB, the images of one run (save=scratch)",
    ]
    first, lines = told(tflops=tflops, overrides="guidance=1 save=zip")
    assert f"{sampling / 2 + 1:.1f} GPU hours" in first
    assert lines[-1] == "  disk: at most 49 MB, the images of all runs (save=zip)"
    assert not [line for line in told(overrides="save=none")[1] if "disk" in line]


def test_a_model_of_unknown_cost_does_not_stop_the_plan(tmp_path, capsys):
    reproduce(TINY, tmp_path, dry_run=True)
    out = capsys.readouterr().out
    assert "9 to run" in out
    assert "GPU hours: " not in out
    assert "memory of fashion_mini: weights 4 MB (parameters: U-Net 1.0 M)" in out
    assert "memory of the score" not in out  # its features are few
    assert "not here yet: /not/here.safetensors" in out


def test_published_networks_are_of_the_published_size():
    """The configurations in the YAML files build the networks of the papers, without weights."""
    sizes = {
        "edm_cifar10": 55_735_299,
        "edm_cifar10_ve": 56_400_643,
        "edm_cifar10_uncond": 55_733_891,
        "edm_cifar10_uncond_ve": 56_397_827,
        "edm_ffhq": 61_805_571,
        "edm_ffhq_ve": 62_761_091,
        "edm_afhqv2_ve": 62_761_091,
        "edm_afhqv2": 61_805_571,
        "edm_imagenet64": 295_899_267,
        "ddim_cifar10": 35_746_307,
        "ddim_celeba": 78_700_803,
    }
    for name, size in sizes.items():
        model = settings("sample", [f"model={name}"]).model.make(device="meta", dtype="auto")
        assert model.provenance["parameters"] == size
        assert torch.device(model.device).type == "meta"
