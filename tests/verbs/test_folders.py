"""A run's folder after accidents: no image is lost, made twice with other bytes, or adopted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bdia_exp.cli import main
from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.runs import RunFolder
from tests.verbs.running import pngs, sample

pytestmark = pytest.mark.usefixtures("four_rows")

ONE = "images/000000/000001.png"
RUN = ("sampler=ddim", "nfe=1", "images=4", "batch=2")


@pytest.fixture(scope="module")
def runs(four_rows, tmp_path_factory) -> dict[str, Path]:
    """Complete runs of the same images, by save=."""
    roots = {save: tmp_path_factory.mktemp(save) for save in ("folder", "zip", "latents")}
    for save, root in roots.items():
        sample(root, *RUN, f"save={save}")
    return roots


@pytest.fixture
def four(runs) -> dict[str, bytes]:
    """The four images."""
    return pngs(runs["folder"])


@pytest.fixture
def out(runs, tmp_path) -> Path:
    """A copy of the run with a folder, to damage."""
    return Path(shutil.copytree(runs["folder"], tmp_path / "out"))


@pytest.fixture
def packed(runs, tmp_path) -> Path:
    """A copy of the run with a zip, to damage."""
    return Path(shutil.copytree(runs["zip"], tmp_path / "out"))


def foreign(file: Path) -> None:
    """A picture of another program, of the right size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), 200).save(file, format="png")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "deleted": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "flipped": flipped,
    "of another program": foreign,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", [how for how in DAMAGE if how != "a folder"])
def test_a_damaged_image_of_a_complete_run_is_made_again(out, four, damage):
    DAMAGE[damage](out / ONE)
    record = sample(out, *RUN)
    assert pngs(out) == four
    assert record["sampled"] == 2  # its batch, and no other


@pytest.mark.parametrize("damage", ["empty", "cut", "of another program"])
def test_a_damaged_image_of_an_unfinished_run_is_made_again(out, four, damage):
    record = json.loads((out / "record.json").read_text()) | {"complete": False}
    (out / "record.json").write_text(json.dumps(record))
    DAMAGE[damage](out / ONE)
    assert sample(out, *RUN)["complete"]
    assert pngs(out) == four


def test_a_folder_in_the_place_of_an_image_is_said(out):
    DAMAGE["a folder"](out / ONE)
    with pytest.raises(UserError, match=r"cannot write .*000001\.png"):
        sample(out, *RUN)


@pytest.mark.parametrize("name", [ONE, "images.zip", "latents/000000/000000.npy"])
def test_what_lies_there_without_a_record_is_refused_and_kept(tmp_path, name):
    foreign(tmp_path / "picture.png")
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_bytes((tmp_path / "picture.png").read_bytes())
    with pytest.raises(UserError, match=r"holds other files.*choose another out="):
        sample(tmp_path / "out", *RUN)
    assert file.read_bytes() == (tmp_path / "picture.png").read_bytes()


@pytest.mark.parametrize(
    "text",
    ['{"complete": tr', "[" * 100_000, '{"identity": 3}', "\x00", '{"identity": {"seeds": "0-3"}}'],
)
def test_a_damaged_record_is_said_and_its_images_are_not_adopted(out, text):
    (out / "record.json").write_text(text)
    with pytest.raises(UserError, match=r"is damaged .*: remove that folder, or choose another"):
        sample(out, *RUN, "sampler.gamma=0.5")
    with pytest.raises(UserError, match=r"is damaged .*: remove that folder, or choose another"):
        call("merge", [f"run={out}"])
    (out / "record.json").unlink()
    with pytest.raises(UserError, match="holds other files"):
        sample(out, *RUN, "sampler.gamma=0.5")


def test_a_list_that_is_cut_off_costs_only_the_images_it_lacks(out, four):
    lines = (out / "images.csv").read_text()
    assert len(lines.splitlines()) == 4
    (out / "images.csv").write_text(lines[:-20])
    assert sample(out, *RUN)["sampled"] == 2
    assert (out / "images.csv").read_text() == lines
    assert pngs(out) == four


def test_an_image_that_the_run_did_not_write_is_not_scored(out):
    foreign(out / ONE)
    with pytest.raises(UserError, match=r"000001\.png is not an image that this run wrote"):
        ImageSet(out).read(range(4))


def test_a_damaged_image_of_a_complete_edit_is_made_again(runs, tmp_path):
    words = [f"images={runs['folder']}", "to=3", "nfe=2", "limit=2", "device=cpu"]
    call("edit", [*words, f"out={tmp_path}"])
    before = pngs(tmp_path)
    time = (tmp_path / "record.json").stat().st_mtime_ns
    call("edit", [*words, f"out={tmp_path}"])
    assert (tmp_path / "record.json").stat().st_mtime_ns == time
    flipped(tmp_path / ONE)
    call("edit", [*words, f"out={tmp_path}"])
    assert pngs(tmp_path) == before


# -- zips and latents ----------------------------------------------------------------------------


def test_zip_and_folder_become_each_other_without_sampling(packed, four):
    whole = (packed / "images.zip").read_bytes()
    assert sample(packed, *RUN, "save=folder")["sampled"] == 0
    assert pngs(packed) == four
    assert not (packed / "images.zip").exists()
    assert sample(packed, *RUN, "save=zip")["sampled"] == 0
    assert (packed / "images.zip").read_bytes() == whole
    assert not (packed / "images").exists()


@pytest.mark.parametrize("damage", ["deleted", "empty", "cut", "flipped", "of another program"])
def test_a_damaged_zip_is_made_again(packed, damage):
    whole = (packed / "images.zip").read_bytes()
    DAMAGE[damage](packed / "images.zip")
    sample(packed, *RUN, "save=zip")
    assert (packed / "images.zip").read_bytes() == whole
    assert not (packed / "images").exists()
    with zipfile.ZipFile(packed / "images.zip") as archive:
        assert archive.testzip() is None


def test_a_damaged_zip_does_not_hide_the_images_of_a_folder(packed, four):
    DAMAGE["cut"](packed / "images.zip")
    sample(packed, *RUN, "save=folder")
    assert pngs(packed) == four
    assert len(ImageSet(packed)) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
def test_damaged_latents_are_made_again(runs, four, tmp_path, damage):
    shutil.copytree(runs["latents"], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "latents/000000/000001.npy"
    before = np.load(file)
    DAMAGE[damage](file)
    assert sample(tmp_path, *RUN, "save=latents")["sampled"] == 2
    assert np.array_equal(np.load(file), before)
    DAMAGE[damage](file)
    assert sample(tmp_path, *RUN)["sampled"] == 2
    assert pngs(tmp_path) == four


# -- several processes in one folder -------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from bdia_exp.store.locks import lock
lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    """A process that was killed leaves its lock file and temporary files, but no lock."""
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=rf"in use by another process \(process {other.pid} "):
            sample(out, *RUN)
        assert not (out / "record.json").exists()
        other.send_signal(signal.SIGKILL)
    part = out / "images/000000/.000001.png.1234.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    part.parent.rename(out / "kept")  # images/ without a record would be refused
    (out / "images").rmdir()
    assert sample(out, *RUN)["complete"]
    assert not list(out.rglob("*.part"))
    assert not (out / ".lock").exists()


def test_a_record_that_another_process_wrote_meanwhile_is_not_overwritten(tmp_path):
    mine, theirs = RunFolder(tmp_path), RunFolder(tmp_path)
    theirs.begin({}, {})
    theirs.finish({"fid": 1.0})
    with pytest.raises(UserError, match="another process has written to"):
        mine.begin({}, {})
    assert json.loads((tmp_path / "record.json").read_text())["fid"] == 1.0


def test_a_record_reaches_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    RunFolder(tmp_path).begin({}, {})
    assert done == ["fsync", "rename", "fsync"] * 2  # the configuration, the record


@pytest.mark.quick
def test_images_that_a_killed_start_left_without_a_count_get_their_nfe(tmp_path):
    words = ["model=toy", "sampler=ddim", "images=4"]
    record = sample(tmp_path, *words)
    (tmp_path / "record.json").write_text(json.dumps(record | {"complete": False, "nfe": None}))
    again = sample(tmp_path, *words)
    assert again["nfe"] == 3
    assert again["images_per_second"] == record["images_per_second"]


def test_a_run_does_not_go_on_with_other_random_weights(tmp_path):
    words = ["model=toy", "sampler=ddim", "nfe=1", "images=4"]
    sample(tmp_path, *words)
    record = json.loads((tmp_path / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**record, "complete": False}))
    with pytest.raises(UserError, match="checkpoint was random:0, now random:1"):
        sample(tmp_path, *words, "model.checkpoint=random:1")


def test_a_folder_with_images_is_complete_without_images_too(tmp_path):
    words = ("model=toy", "sampler=ddim", "nfe=1", "images=70")
    sample(tmp_path, *words, "save=folder")
    assert sample(tmp_path, *words, "save=none")["config"]["save"] == "folder"
    assert sample(tmp_path, *words, "save=none", "score=true")["sampled"] == 0
    assert len(pngs(tmp_path)) == 70


def test_submit_continues_what_is_not_scored_or_has_lost_images(tmp_path):
    words = ["submit", "sample", *RUN, f"out={tmp_path}", "launcher=bash", "dry_run=false"]

    def told(*more: str) -> str:
        answer = CliRunner().invoke(main, [*words, *more])
        assert answer.exit_code == 0
        return answer.output

    sample(tmp_path, *RUN, "save=folder")
    assert "nothing to submit" in told()
    assert "to run it: bash" in told("score=true")
    shutil.rmtree(tmp_path / "images")
    assert "to run it: bash" in told()
