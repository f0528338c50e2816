"""A finished run is found again, unless it was made from other files."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bdia_exp.cli import main
from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.sources import checkpoints
from bdia_exp.store import records
from tests.verbs.running import sample


@pytest.fixture
def net(tmp_path) -> Path:
    """A copy of the bundled weights."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(checkpoints.BUNDLED / f"fashion_mini{suffix}", tmp_path / f"net{suffix}")
    return tmp_path / "net.safetensors"


def test_other_weights_that_are_not_here_are_no_finished_run(net, tmp_path, capsys):
    words = ["images=1", "nfe=1", "model=edm", "sampler=ddim"]
    sample(tmp_path / "run", *words, f"model.checkpoint={net}")
    with pytest.raises(UserError, match=r"nothing is at .*typo\.safetensors"):
        sample(tmp_path / "run", *words, f"model.checkpoint={tmp_path}/typo.safetensors")
    net.unlink()
    capsys.readouterr()
    sample(tmp_path / "run", *words, f"model.checkpoint={net}")  # its record has the sha256
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_a_run_whose_weights_are_not_here_can_be_submitted(net, tmp_path):
    words = ["nfe=1", "model=edm", "sampler=ddim", f"model.checkpoint={net}", "images=1"]
    run = tmp_path / "run"
    sample(run, *words)
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(record | {"complete": False}))
    for file in (net, net.with_suffix(".json")):
        file.unlink()
    how = ["submit", "sample", *words, "launcher=bash", f"out={run}"]
    assert CliRunner().invoke(main, how).exit_code == 0
    assert (run / "submit/tasks.sh").is_file()


def test_coefficients_that_are_not_here_are_no_finished_run(tmp_path):
    words = ["images=1", "nfe=3", "sampler=bdia_ddim"]
    sample(tmp_path / "run", *words, "sampler.gamma=0.5")
    with pytest.raises(UserError, match=r"nothing is at typo\.json"):
        sample(tmp_path / "run", *words, "sampler.gamma=typo.json")


def test_a_score_is_of_the_content_of_its_reference(tmp_path, capsys):
    file = tmp_path / "reference.npz"
    shutil.copy(checkpoints.BUNDLED / "fashion_reference.npz", file)
    words = ["model=toy", "features=bundled", "images=66", "score=true", "save=none"]
    run = [*words, f"reference={file}", "nfe=3", "device=cpu", f"out={tmp_path / 'run'}"]
    first = call("sample", run)
    assert call("sample", run) == first
    assert "nothing to do" in capsys.readouterr().out
    with np.load(file) as old:
        arrays = dict(old)
    numbers = b"".join(arrays[key].astype("<f8").tobytes() for key in ("mu", "sigma"))
    assert first["reference_sha256"] == sha256(numbers).hexdigest()
    np.savez(file, **arrays, remark="the same statistics, made again")
    assert call("sample", run) == first
    assert "nothing to do" in capsys.readouterr().out
    np.savez(file, **{**arrays, "mu": arrays["mu"] + 1})
    again = call("sample", run)
    assert again["score"]["fid"] > first["score"]["fid"]
    file.unlink()  # then the record is all that is known
    assert call("sample", run) == again


def test_a_folder_of_reference_images_is_known_by_its_pictures(tmp_path, capsys):
    toy = ["model=toy", "nfe=3", "device=cpu"]
    words = [*toy, "images=66", "score=true", "save=none", f"reference={tmp_path / 'real/images'}"]
    for label in (1, 2):
        shutil.rmtree(tmp_path / "real", ignore_errors=True)
        call("sample", [*toy, "images=70", f"class={label}", f"out={tmp_path / 'real'}"])
        call("sample", [*words, f"out={tmp_path / f'run{label}'}"])
    capsys.readouterr()
    again = call("sample", [*words, f"out={tmp_path / 'run1'}"])
    assert "nothing to do" not in capsys.readouterr().out
    new = records.load(tmp_path / "run2" / "record.json")
    assert again["score"]["fid"] == new["score"]["fid"]
    assert again["reference_sha256"] == new["reference_sha256"]


def test_a_score_stays_when_its_images_are_only_stored_otherwise(tmp_path):
    words = ["model=toy", "nfe=3", "device=cpu", "images=66", f"out={tmp_path}"]
    scored = call("sample", [*words, "score=true", "features=bundled", "metrics=[fid,isc]"])
    packed = call("sample", [*words, "save=zip"])
    kept = ("score", "features", "reference_sha256")
    assert {key: packed[key] for key in kept} == {key: scored[key] for key in kept}
    assert packed["save"] == "zip"
    assert packed["config"]["metrics"] == ["fid", "isc"]


def test_shards_are_not_merged_against_another_reference(tmp_path):
    file = tmp_path / "reference.npz"
    shutil.copy(checkpoints.BUNDLED / "fashion_reference.npz", file)
    words = ["model=toy", "features=bundled", "images=90", "score=true", "save=shards", "shard=45"]
    words += [f"reference={file}", "nfe=3", "device=cpu", f"out={tmp_path / 'run'}"]
    for part in ("1/2", "2/2"):
        call("sample", [*words, f"part='{part}'"])
    with np.load(file) as old:
        arrays = dict(old)
    arrays["mu"] = arrays["mu"] + 1
    np.savez(file, **arrays)
    with pytest.raises(UserError, match="has other content than when the run was begun"):
        call("merge", [f"run={tmp_path / 'run'}"])
