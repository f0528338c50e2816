"""`status`, and what it reads: journals and records, also damaged ones."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.stopping import Stopped
from bdia_exp.store import journals
from bdia_exp.store.journals import Journal
from tests.verbs.running import run


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A complete run."""
    root = tmp_path_factory.mktemp("one") / "run"
    run(root)
    return root


@pytest.mark.quick
def test_status_of_a_folder_of_runs(one, tmp_path, capsys):
    shutil.copytree(one, tmp_path / "b/run")
    run(tmp_path / "a", "part=1/7")
    states = call("status", [f"path={tmp_path}"])
    assert [state["made"] for state in states] == [30, 200]
    shown = capsys.readouterr().out
    assert "not complete, 1 of 7 shards, 30 of 200 images" in shown
    assert "1 of 2 runs are complete" in shown
    with pytest.raises(UserError, match="has no runs"):
        call("status", [f"path={tmp_path / 'nothing'}"])


def test_an_error_of_a_part_is_in_its_status(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4567")
    with pytest.raises(UserError, match="diverged"):
        run(tmp_path, "part=1/2", "sampler=bdia_ddim", "nfe=9", f"sampler.gamma={[1e300] * 8}")
    (state,) = call("status", [f"path={tmp_path}"])
    assert "diverged" in state["errors"]["part 1/2"]
    journal = json.loads((tmp_path / "shards/1of2.0.json").read_text())
    assert journal["process"].endswith(", job 4567")


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes", [{"part": 3}, {"part": "3"}, {"seconds": 0}, {"sampled": "x"}, {"nfe": [1]}], ids=str
)
def test_a_damaged_journal_is_left_out(tmp_path, changes):
    run(tmp_path, "part=1/7")
    change(tmp_path / "shards/1of7.0.json", **changes)
    (state,) = call("status", [f"path={tmp_path}"])
    assert state["made"] == 30
    assert journals.read(tmp_path) == []
    with pytest.raises(UserError, match="run the same `sample` again, then merge"):
        call("merge", [f"run={tmp_path}"])


@pytest.mark.parametrize("key", ["features", "config.sheet", "config.metrics", "config.reference"])
def test_a_record_with_a_value_of_another_type_is_damaged(one, tmp_path, key):
    out = shutil.copytree(one, tmp_path / "out")
    file, (outer, _, inner) = out / "record.json", key.partition(".")
    config = json.loads(file.read_text())["config"]
    change(file, complete=False, **{outer: config | {inner: {}} if inner else 3})
    said = f"its {inner or outer} cannot be"
    (state,) = call("status", [f"path={out}"])
    assert said in state["error"]
    for go_on in (lambda: call("merge", [f"run={out}"]), lambda: run(out)):
        with pytest.raises(UserError, match=said):
            go_on()


@pytest.mark.parametrize("changes", [{"classes": "ten"}, {"note": 3}], ids=str)
def test_merge_says_that_a_record_describes_no_features(one, tmp_path, changes):
    out = shutil.copytree(one, tmp_path / "out")
    features = json.loads((out / "record.json").read_text())["features"]
    change(out / "record.json", complete=False, features=features | changes)
    with pytest.raises(UserError, match="does not say with what its images are scored"):
        call("merge", [f"run={out}"])


@pytest.mark.parametrize("error", [Stopped(15), KeyboardInterrupt()], ids=repr)
def test_a_journal_says_that_a_signal_stopped_the_part(tmp_path, error):
    with suppress(KeyboardInterrupt), Journal(tmp_path, None, None):
        raise error
    assert journals.read(tmp_path)[0]["error"] == "a signal asked it to stop"


def test_the_starts_of_a_part_are_kept_once(tmp_path, monkeypatch):
    """Every rank writes all of them, so repetitions would multiply with each start."""
    for start in range(4):
        starts = [*journals.starts(tmp_path), {"commit": str(start % 2)}]
        for rank in range(3):
            monkeypatch.setattr("bdia_exp.dist.rank", lambda rank=rank: rank)
            Journal(tmp_path, None, None, starts).write()
    assert journals.starts(tmp_path) == [{"commit": "0"}, {"commit": "1"}]
    assert all(len(one["starts"]) <= 3 for one in journals.read(tmp_path))
