"""reproduce and table: missing cells are run, tables are drawn."""

import json
import subprocess
import sys
from functools import partial

import pytest
from click.testing import CliRunner

from bdia_exp.cli import main
from bdia_exp.cli.configs import call
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.store import records
from tests import asking
from tests.asking import one_sentence
from tests.report.test_tables import record

EXPERIMENT = {
    "name": "tiny",
    "title": "A tiny experiment",
    "images": 70,
    "common": ["model=fashion_mini"],
    "tables": [
        {
            "name": "t",
            "title": "Two samplers",
            "axis": "NFE",
            "rows": {"EDM": ["sampler=edm"], "DDIM": ["sampler=ddim"]},
            "columns": {"3": ["nfe=3"], "5": ["nfe=5"]},
            "published": {"EDM": {"3": 1.5}},
        }
    ],
}


reproduce = partial(asking.reproduce, EXPERIMENT)


def test_reproduce_runs_the_missing_cells_and_draws_the_tables(tmp_path, capsys):
    reproduce(tmp_path, cells="EDM")
    first = {f.parent.name: f.stat().st_mtime_ns for f in tmp_path.rglob("record.json")}
    assert len(first) == 2
    drawn = reproduce(tmp_path)
    assert {f.parent.name: f.stat().st_mtime_ns for f in tmp_path.rglob("record.json")}.items() >= (
        first.items()
    )
    cells = drawn["tables"][0]["cells"]
    assert [(c["row"], c["column"], c["nfe"]) for c in cells] == [
        ("EDM", "3", 3),
        ("EDM", "5", 5),
        ("DDIM", "3", 3),
        ("DDIM", "5", 5),
    ]
    text = (tmp_path / "tables.md").read_text()
    assert f"{cells[0]['fid']:.3f}" in text
    assert f"(published 1.5, {cells[0]['fid'] - 1.5:+.2f})" in text
    assert "not comparable with Inception" in text
    assert text in capsys.readouterr().out
    for name in ("fid.png", "samples.png", "tables.json"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_cell_of_another_experiment_is_not_taken_for_done(tmp_path, capsys):
    reproduce(tmp_path, cells="EDM")
    reproduce(tmp_path, cells="EDM", dry_run=True)
    assert "2 of 2 runs are there, 0 to run" in capsys.readouterr().out
    record = tmp_path / "cells/t-EDM-3/record.json"
    record.write_text(record.read_text().replace('"call": "heun"', '"call": "heun", "gamma": 0.25'))
    with pytest.raises(UserError, match=r"sampler.gamma was 0.25, now the default"):
        reproduce(tmp_path, cells="EDM")


def test_dry_run_runs_nothing(tmp_path, capsys):
    reproduce(tmp_path, dry_run=True)
    assert "4 to run: 1,120 network evaluations" in capsys.readouterr().out
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("words", [["reproduce"], ["submit", "reproduce"]])
def test_a_plan_for_a_gpu_needs_none(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    shown = CliRunner().invoke(main, [*words, "demo", "device=cuda", "dry_run=true"]).output
    assert "runs are there" in shown
    assert "a guess: give tflops=" in shown
    told = one_sentence(*words, "demo", "device=gpu", "dry_run=true")
    assert "device='gpu' is unknown" in told


def test_too_few_images_are_refused_before_anything_is_run(tmp_path, capsys):
    reproduce(tmp_path, limit=64, dry_run=True)
    reason = "FID in 64 dimensions needs at least 65 images; there are 64"
    assert f"refused: {reason}" in capsys.readouterr().out
    with pytest.raises(UserError, match=reason):
        reproduce(tmp_path, limit=64)
    assert not list(tmp_path.iterdir())


def test_runs_that_do_not_fit_the_model_are_named_and_the_others_run(tmp_path, capsys):
    table = EXPERIMENT["tables"][0]
    rows = {"EDM": ["sampler=edm"], "guided": ["sampler=edm", "guidance=3"]}
    made = partial(asking.reproduce, EXPERIMENT | {"tables": [table | {"rows": rows}]}, tmp_path)
    made(cells="at 3", dry_run=True)
    reason = "guidance=3: guidance needs a model of texts"
    assert f"refused: {reason}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"1 of 2 runs could not start:\n  {reason}"):
        made(cells="at 3")
    assert len([*tmp_path.glob("cells/*/record.json")]) == 1


def test_submit_refuses_an_experiment_that_does_not_fit_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["submit", "reproduce", "demo", "limit=70", "overrides=class=99", "launcher=bash"]
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 1
    assert "12 of 12 runs could not start:\n  class=99 is out of range" in answer.output
    assert not list(tmp_path.iterdir())


def test_table_without_records_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run `bdia-exp reproduce tiny` first"):
        asking.table(EXPERIMENT, tmp_path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("score", {}), ("images_per_second", None), ("config", {}), ("score", {"fid": "large"})],
)
def test_a_record_that_lacks_what_a_table_shows_is_named(tmp_path, entry, value):
    cell = record(3.0, 3) | {"complete": True}
    files = [tmp_path / f"cells/t-EDM-{nfe}/record.json" for nfe in (3, 5)]
    records.save(files[0], cell)
    records.save(files[1], cell | {entry: value})
    with pytest.raises(UserError, match=rf"{files[1]} is damaged \(it has no {entry}.*: remove"):
        asking.table(EXPERIMENT, tmp_path)


def ranges_of_a_cell(root, *changes: dict) -> list[str]:
    """Writes the records of a cell: one of 70 images from each of the first seeds."""
    folders = [f"t-EDM-3-from{70 * n}" if n else "t-EDM-3" for n in range(len(changes))]
    for n, (folder, change) in enumerate(zip(folders, changes, strict=True)):
        of_range = record(float(n), 3, seeds=f"{70 * n}-{70 * n + 69}") | {"complete": True}
        of_range["identity"] |= change
        records.save(root / "cells" / folder / "record.json", of_range)
    return folders


def test_a_table_shows_the_seed_ranges_that_were_asked_for(tmp_path):
    ranges_of_a_cell(tmp_path, {}, {}, {})

    def shown(**asked) -> list[float]:
        return asking.table(EXPERIMENT, tmp_path, **asked)["tables"][0]["cells"][0]["fids"]

    assert shown() == [0, 1, 2]
    assert shown(repeats=2) == [0, 1]


@pytest.mark.parametrize("other", [{"nfe": 9}, {"checkpoint": "1"}])
def test_a_cell_has_runs_of_one_experiment(tmp_path, other):
    first, odd = ranges_of_a_cell(tmp_path, {"nfe": 3, "checkpoint": "0"}, {"nfe": 3} | other)
    with pytest.raises(UserError, match=rf"{odd} holds another experiment .*remove .*{first}, and"):
        asking.table(EXPERIMENT, tmp_path)
    asking.table(EXPERIMENT, tmp_path, repeats=1)


def test_reproduce_draws_the_seed_ranges_that_it_planned(tmp_path):
    reproduce(tmp_path, cells="EDM at 3", repeats=2)
    odd = tmp_path / "cells/t-EDM-3-from70/record.json"
    odd.write_text(odd.read_text().replace('"nfe": 3', '"nfe": 4'))
    (cell,) = reproduce(tmp_path, cells="EDM at 3", repeats=1)["tables"][0]["cells"]
    assert cell["seeds"] == ["0-69"]


def test_a_table_of_records_alone(tmp_path, capsys):
    reproduce(tmp_path, cells="EDM")
    for file in (*tmp_path.rglob("sheet.png"), tmp_path / "samples.png"):
        file.unlink()
    asking.table(EXPERIMENT, tmp_path)
    assert "tables.md, tables.json, fid.png\n" in capsys.readouterr().out
    assert not (tmp_path / "samples.png").exists()


def test_keys_without_a_value_are_as_absent(tmp_path, capsys):
    empty = dict.fromkeys(("settings", "repeats", "report"))
    tables = [EXPERIMENT["tables"][0] | dict.fromkeys(("common", "published", "match"))]
    common = {"common": None} | {"tables": [tables[0] | {"common": ["model=fashion_mini"]}]}
    for experiment in (EXPERIMENT | empty | {"tables": tables}, EXPERIMENT | empty | common):
        asking.reproduce(experiment, tmp_path, dry_run=True)
        assert "0 of 4 runs are there" in capsys.readouterr().out
    ranges_of_a_cell(tmp_path, {})
    assert asking.table(experiment, tmp_path)["report"] == "mean"


def test_labels_need_no_quotation_marks(tmp_path):
    """YAML reads the labels of NFEs as numbers."""
    numbers = {"columns": {3: ["nfe=3"]}, "published": {"EDM": {3: 1.5}}, "match": {3: 1.5}}
    ranges_of_a_cell(tmp_path, {})
    experiment = EXPERIMENT | {"common": [], "tables": [EXPERIMENT["tables"][0] | numbers]}
    (table,) = asking.table(experiment, tmp_path)["tables"]
    assert (table["columns"], table["match"]) == (["3"], {"3": 1.5})
    assert table["cells"][0]["published"] == 1.5


def test_reproduce_in_two_processes_gives_the_numbers_of_one(tmp_path, capsys):
    words = ["reproduce", "demo", "limit=70", "cells=at 9", "device=cpu", "batch=16"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    whole = [*command, "-m", "bdia_exp", *words, f"out={tmp_path / 'two'}"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (overrides,) = expand("reproduce", (*words[1:], f"out={tmp_path / 'one'}"), multirun=False)
    call("reproduce", overrides)
    runs = {}
    for name, told in (("one", capsys.readouterr().out), ("two", done.stdout)):
        assert told.count("# BDIA's Tables 2 and 3 in miniature") == 1
        drawn = json.loads((tmp_path / name / "tables.json").read_text())
        cells = drawn["tables"][0]["cells"]
        runs[name] = {(c["row"], c["column"]): c["fid"] for c in cells}
    assert list(runs["one"]) == [("EDM", "9"), ("BDIA-EDM γ=1", "9")]
    assert runs["two"] == pytest.approx(runs["one"], rel=1e-9)
