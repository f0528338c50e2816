"""evaluate and reference on files of others: what is said, refused, and never overwritten."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.jobs.scoring import require_replaceable
from bdia_exp.metrics.moments import Statistics
from tests.verbs.running import sample

ARRAY = np.random.default_rng(0).integers(0, 256, (70, 32, 32), dtype=np.uint8)


def evaluate(images, *more: str) -> dict:
    return call("evaluate", [f"images='{images}'", "device=cpu", *more])


def reference(images, out) -> Statistics:
    return call("reference", [f"images='{images}'", f"out='{out}'", "device=cpu"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored") / "run"
    sample(root, "images=66", "nfe=1", "sampler=ddim", "sheet=0")
    return root


@pytest.fixture
def folder(tmp_path):
    for k, image in enumerate(ARRAY):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"set/{k:03d}.png")
    return tmp_path / "set"


@pytest.mark.parametrize(("lowest", "shown"), [(0, True), (1, False), (-1, False), (10**15, False)])
def test_an_accuracy_is_that_of_labels_in_range(tmp_path, capsys, lowest, shown):
    np.savez(tmp_path / "x.npz", ARRAY, np.arange(70) % 10 + lowest)
    score = evaluate(tmp_path / "x.npz", "batch=16")["score"]
    assert ("label_accuracy" in score) is shown
    told = capsys.readouterr().out
    assert ("label accuracy" in told) is True
    assert (f"labels {lowest} to {lowest + 9} are out of the range 0 to 9" in told) is not shown


def test_grey_files_stored_as_rgb_and_mixed_have_the_same_score(folder, tmp_path):
    np.savez(tmp_path / "x.npz", ARRAY)
    expected = evaluate(tmp_path / "x.npz")["score"]["fid"]
    for k in range(0, 70, 2):
        with Image.open(folder / f"{k:03d}.png") as picture:
            picture.convert("RGB").save(folder / f"{k:03d}.png")
    assert evaluate(folder)["score"]["fid"] == expected


def test_what_was_left_out_or_put_on_white_is_said_and_recorded(folder, tmp_path, capsys):
    Image.new("LA", (32, 32), (9, 0)).save(folder / "000.png")
    (folder / "x.heic").write_bytes(b"")
    record = evaluate(folder, f"reference='{folder}'")
    assert record["score"]["fid"] == pytest.approx(0, abs=1e-6)
    formats, white = record["notes"]
    assert "pictures of other formats were left out: 1 (x.heic)" in formats
    assert "1 images have transparent parts" in white
    assert capsys.readouterr().out.count("note: ") == 4  # of the images and of the reference
    assert reference(folder, tmp_path / "r").meta["notes"] == [formats, white]


def test_only_our_own_results_are_replaced(folder, tmp_path):
    np.savez(tmp_path / "images.npz", ARRAY)
    np.savez(tmp_path / "theirs.npz", mu=np.ones(64), sigma=np.eye(64))
    (tmp_path / "mine.json").write_text('{"command": "sample"}')
    shutil.copy(folder / "000.png", folder / "copy.npz")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for images, out in (
        (tmp_path / "images.npz", tmp_path / "images"),
        (folder, tmp_path / "images.npz"),
        (folder, tmp_path / "theirs"),
        (folder, folder / "copy"),
    ):
        with pytest.raises(UserError, match="is there and is not an earlier result of `ref"):
            reference(images, out)
    for name in ("mine.json", "images.npz", "set/000.png", "set"):
        with pytest.raises(UserError, match="is there and is not an earlier score of `evaluate`"):
            evaluate(folder, f"out='{tmp_path / name}'")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):  # the second time it replaces the first
        reference(folder, tmp_path / "r.npz")
        evaluate(folder, f"out='{tmp_path / 's.json'}'", f"reference='{tmp_path / 'r.npz'}'")
    assert json.loads((tmp_path / "s.json").read_text())["score"]["fid"] == pytest.approx(
        0, abs=1e-6
    )
    with pytest.raises(UserError, match="is not an earlier score"):
        evaluate(folder, f"out='{tmp_path / 'r.npz'}'", f"reference='{tmp_path / 'r.npz'}'")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/x.json", "/dev/null", "pipe"])
def test_places_where_no_file_can_be_written(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"\Aout="):
        require_replaceable(tmp_path / name, lambda _: True, "ours")


def test_a_run_that_lacks_images_is_not_scored_in_silence(run, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / "images/000000/000003.png").unlink()
    told = r"part is not complete, 65 of 66 images are there: .* or give limit="
    for images in (part, part / "images"):
        with pytest.raises(UserError, match=told):
            evaluate(images)
    with pytest.raises(UserError, match=told):
        evaluate(run, f"reference='{part}'")
    with pytest.raises(UserError, match=told):
        reference(part, tmp_path / "r")
    assert evaluate(part, "limit=65")["score"]["images"] == 65
    record = json.loads((run / "record.json").read_text())
    shutil.copytree(run, tmp_path / "stopped")
    (tmp_path / "stopped/record.json").write_text(json.dumps(record | {"complete": False}))
    with pytest.raises(UserError, match="stopped is not complete, 66 of 66 images"):
        evaluate(tmp_path / "stopped")


def test_a_reference_of_too_few_images_is_refused_before_the_work(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", ARRAY)
    np.savez(tmp_path / "r.npz", mu=np.ones(64), sigma=np.eye(64), count=60)
    monkeypatch.setattr("bdia_exp.verbs.evaluate.score_set", lambda *_: pytest.fail("scored"))
    with pytest.raises(UserError, match="made of 60 images: FID in 64 dimensions needs"):
        evaluate(tmp_path / "x.npz", f"reference='{tmp_path / 'r.npz'}'")
