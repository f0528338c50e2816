"""Runs of shards: the same bytes and the same score, whatever happens to them."""

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bdia_exp.cli.configs import call, settings
from bdia_exp.errors import UserError
from bdia_exp.store.image_sets import ImageSet
from tests.verbs.running import SHARDS, TOY, as_asked, pngs, run


def files(root: Path) -> dict[str, bytes]:
    """Every file of the shards, and their list."""
    found = [*(root / "shards").iterdir(), root / "shards.csv"]
    return {f.name: f.read_bytes() for f in sorted(found)}


def members(root: Path) -> dict[str, bytes]:
    """The pictures in all shards, as `pngs` names those of a folder."""
    found = {}
    for file in sorted((root / "shards").glob("*.zip")):
        with zipfile.ZipFile(file) as archive:
            found |= {f"images/{n}": archive.read(n) for n in archive.namelist() if ".png" in n}
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The run of one patient process."""
    root = tmp_path_factory.mktemp("one") / "run"
    run(root)
    return root


@pytest.fixture
def out(one, tmp_path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(one, tmp_path / "out"))


def score(root: Path) -> dict:
    return json.loads((root / "record.json").read_text())["score"]


def require_same(root: Path, one: Path) -> None:
    assert files(root) == files(one)
    assert score(root) == score(one)
    assert (root / "sheet.png").read_bytes() == (one / "sheet.png").read_bytes()
    assert not list(root.rglob(".*"))  # no lock, no temporary file


# -- the same, however it is made ----------------------------------------------------------------


def test_shards_have_the_images_and_the_score_of_a_folder(one, tmp_path):
    plain = as_asked(tmp_path, *TOY, "save=folder", "score=true")
    assert len(files(one)) == 7 * 2 + 1
    assert members(one) == pngs(tmp_path)
    assert (one / "sheet.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    ours, theirs = score(one), plain["score"]
    parts = "fid_without_block"
    assert ours.keys() == theirs.keys()
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-9)
    assert ours[parts] == pytest.approx(theirs[parts], rel=1e-6)
    assert ours["label_accuracy"] == theirs["label_accuracy"]
    assert (ImageSet(one).names, ImageSet(one).labels) == (
        ImageSet(tmp_path).names,
        ImageSet(tmp_path).labels,
    )


def test_other_batches_and_processes_make_the_same_bytes(one, tmp_path):
    words = [*SHARDS, "batch=7", f"out={tmp_path}"]
    command = [sys.executable, "-m", "bdia_exp", "sample", "-p", "3", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    require_same(tmp_path, one)
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["processes"], record["sampled"], record["nfe"]) == (3, 200, 1)


@pytest.mark.quick
def test_parts_and_merge_make_the_same_bytes(one, tmp_path):
    for part in ("3/3", "1/3"):
        assert not run(tmp_path, f"part={part}")["complete"]
    names = {f.name[:10] for f in (tmp_path / "shards").glob("*.zip")}
    assert names == {f"{first:010d}" for first in (0, 60, 90, 150, 180)}
    with pytest.raises(UserError, match=r"2 of 7 shards .*30-59, 120-149.* part=2/3, then merge"):
        call("merge", [f"run={tmp_path}"])
    run(tmp_path, "part=2/3")
    record = call("merge", [f"run={tmp_path}"])
    require_same(tmp_path, one)
    assert record["complete"]
    assert (record["processes"], record["sampled"], record["nfe"]) == (3, 200, 1)
    before = (tmp_path / "record.json").stat().st_mtime_ns
    call("merge", [f"run={tmp_path}"])
    assert run(tmp_path, "part=1/3")["complete"]
    assert run(tmp_path)["complete"]
    assert (tmp_path / "record.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("last", ["merge", "sample"])
def test_the_record_knows_what_made_every_part(last, tmp_path, monkeypatch):
    """Also the first start of a part that was stopped, but no start that made nothing."""
    commits = {"1/2": "one", "2/2": "two"}
    for part, commit in commits.items():
        monkeypatch.setattr("bdia_exp.store.records.commit", lambda commit=commit: commit)
        run(tmp_path, f"part={part}")
    next(tmp_path.glob("shards/0000000030-*.zip")).unlink()  # of part 2
    for part, commit in (("1/2", "none"), ("2/2", "three")):
        monkeypatch.setattr("bdia_exp.store.records.commit", lambda commit=commit: commit)
        assert not run(tmp_path, f"part={part}")["complete"]
    made = call("merge", [f"run={tmp_path}"]) if last == "merge" else run(tmp_path)
    starts = [*made["earlier"], made]
    assert {start["commit"] for start in starts} == {"one", "two", "three"}
    assert all(start["device"] and start["versions"] for start in starts)


def test_a_run_without_part_goes_on_after_parts(one, tmp_path):
    run(tmp_path, "part=2/4")
    assert run(tmp_path)["sampled"] == 200 - 60
    require_same(tmp_path, one)


def test_a_run_that_was_killed_loses_only_the_shard_in_work(one, tmp_path):
    words = [*SHARDS, "batch=1", f"out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bdia_exp", "sample", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while len(list(tmp_path.glob("shards/*.npz"))) < 2 and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    made = {f: f.stat().st_mtime_ns for f in tmp_path.glob("shards/*.zip")}
    (tmp_path / "shards/.0000000180-0000000209.zip.other.7.part").write_bytes(b"half")
    assert 2 <= len(made) < 7
    assert run(tmp_path)["sampled"] <= 200 - 30 * 2
    require_same(tmp_path, one)
    listed = [file for file, then in made.items() if file.stat().st_mtime_ns == then]
    assert len(listed) >= 2


def test_images_that_are_scored_later_are_not_made_again(one, tmp_path, monkeypatch):
    """The record keeps their speed, and the commit that made them."""
    before = run(tmp_path, "score=false")
    monkeypatch.setattr("bdia_exp.store.records.commit", lambda: "another")
    after = run(tmp_path)
    assert after["sampled"] == 0
    assert after["images_per_second"] == before["images_per_second"] > 0
    assert after["commit"] == "another"
    assert [start["commit"] for start in after["earlier"]] == [before["commit"]]
    require_same(tmp_path, one)


def test_seeds_with_gaps(tmp_path):
    as_asked(tmp_path, *TOY[:4], "seeds=45,5-24,70", "save=shards", "shard=20")
    found = ImageSet(tmp_path)
    assert [int(Path(name).stem) for name in found.names] == [*range(5, 25), 45, 70]
    assert sorted(files(tmp_path)) == [
        *(f"{first:010d}-{first + 19:010d}.zip" for first in (0, 20, 40, 60)),
        "shards.csv",
    ]


# -- damage --------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


SECOND = "shards/0000000030-0000000059.zip"


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-9])]
)
def test_a_shard_of_another_size_is_made_again(one, out, damage):
    damage(out / SECOND)
    (state,) = call("status", [f"path={out}"])
    assert (state["missing"], state["damaged"], state["made"]) == (1, 1, 170)
    with pytest.raises(UserError, match="170 of 200 images are there"):
        call("evaluate", [f"images={out}"])
    assert run(out)["sampled"] == 30
    require_same(out, one)


@pytest.mark.quick
def test_verify_finds_a_flipped_byte_and_just_that_shard_is_made_again(one, out):
    assert call("verify", [f"run={out}"]) == 14
    flip(out / SECOND)
    flip(out / "shards" / next(n for n in files(out) if n.startswith("0000000090") and "npz" in n))
    with pytest.raises(UserError, match=r"2 of 14 files are missing or damaged .*0000000030-"):
        call("verify", [f"run={out}"])
    assert (out / f"{SECOND}.damaged").is_file()
    assert run(out)["sampled"] == 30  # the features of the other shard are measured again
    for file in out.glob("shards/*.damaged"):
        file.unlink()
    require_same(out, one)


def test_damaged_features_are_found_when_a_score_is_added_up(one, out):
    record = json.loads((out / "record.json").read_text()) | {"complete": False}
    (out / "record.json").write_text(json.dumps(record))
    flip(next(out.glob("shards/0000000060*.npz")))
    with pytest.raises(UserError, match=r"0000000060.* was damaged .*run the same `sample` again"):
        call("merge", [f"run={out}"])
    assert run(out)["sampled"] == 0
    next(out.glob("shards/*.damaged")).unlink()
    require_same(out, one)


def test_a_list_that_is_cut_off_costs_one_shard(one, out):
    text = (out / "shards.csv").read_text()
    first, rest = text.split("\n", 1)
    (out / "shards.csv").write_text(f"{rest}{first[:40]}")
    assert run(out)["sampled"] == 30
    require_same(out, one)


def test_measured_features_of_images_made_again_leave_the_list(out):
    (out / SECOND).unlink()
    assert run(out, "score=false")["sampled"] == 30
    assert call("verify", [f"run={out}"]) == 13


def test_verify_reads_the_images_of_a_folder_too(tmp_path):
    as_asked(tmp_path, *TOY, "images=20")
    assert call("verify", [f"run={tmp_path}"]) == 20
    flip(tmp_path / "images/000000/000007.png")
    with pytest.raises(UserError, match=r"1 of 20 files .*000007\.png"):
        call("verify", [f"run={tmp_path}"])


# -- several processes in one folder -------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from bdia_exp.store.locks import lock
lock(Path(sys.argv[1]), sys.argv[2] or None)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("part", ["", "2of3"])
def test_a_part_excludes_itself_and_the_whole_run_but_no_other_part(tmp_path, part):
    run(tmp_path, "part=3/3")
    command = [sys.executable, "-c", HOLD, tmp_path, part]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        for refused in (
            lambda: run(tmp_path, "part=2/3"),
            lambda: run(tmp_path),
            lambda: call("merge", [f"run={tmp_path}"]),
        ):
            with pytest.raises(UserError, match="in use by another process"):
                refused()
        (state,) = call("status", [f"path={tmp_path}"])
        assert state["holders"] == {part: state["holders"][part]}
        assert str(other.pid) in state["holders"][part]
        if part:
            run(tmp_path, "part=1/3")
            with pytest.raises(UserError, match=r"part 2/3 is in work .* or give part=K/3"):
                run(tmp_path, "part=1/2")  # it has shards of 2/3
        other.send_signal(signal.SIGKILL)
    for left in ("1/3", "2/3"):
        run(tmp_path, f"part={left}")
    assert call("merge", [f"run={tmp_path}"])["complete"]


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    {
        "shard=50": "has shards of 30 seeds: give shard=30",
        "save=folder": "has its images with save=shards",
        "save=zip": "has its images with save=shards",
    }.items(),
)
def test_another_form_in_the_same_folder_is_refused(one, words, said):
    with pytest.raises(UserError, match=said):
        run(one, words)


def test_parts_with_other_settings_of_the_score_are_refused(tmp_path):
    run(tmp_path, "part=2/2")
    with pytest.raises(UserError, match="begun with other settings"):
        run(tmp_path, "part=1/2", "score=false")


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "x/2", "1/2/3"])
def test_what_is_no_part_is_refused(part):
    with pytest.raises(UserError, match=r"part=.*: give the number of the part"):
        settings("sample", [*TOY, f"part={part}"])


def test_save_is_folder_or_shards_by_the_number_of_images(tmp_path):
    def usual(*words: str) -> str:
        return settings("sample", ["model=toy", *words]).usual_save

    assert [usual("images=4999"), usual("images=5000")] == ["folder", "shards"]
    assert usual("images=8", "part=1/2") == "shards"
    with pytest.raises(UserError, match="give save=shards, not zip"):
        settings("sample", [*TOY, "part=1/2", "save=zip"])
    root = tmp_path / "shards"
    as_asked(root, *TOY, "images=20", "save=shards")
    assert as_asked(root, *TOY, "images=20")["config"]["save"] == "shards"
    root = tmp_path / "folder"
    as_asked(root, *TOY, "images=20")
    with pytest.raises(UserError, match="has its images with save=folder"):
        as_asked(root, *TOY, "images=20", "part=1/2")


# -- reading and exporting -----------------------------------------------------------------------


def test_evaluate_reads_shards(one, tmp_path):
    record = call("evaluate", [f"images={one}", f"out={tmp_path / 'score.json'}"])
    assert record["score"]["fid"] == pytest.approx(score(one)["fid"], rel=1e-9)
    assert record["score"]["label_accuracy"] == score(one)["label_accuracy"]


@pytest.mark.quick
@pytest.mark.parametrize("form", ["png", "zip", "npz"])
def test_export_writes_what_can_be_read_again(one, tmp_path, form):
    words = [f"images={one}", f"format={form}", "limit=70", "batch=32", f"out={tmp_path / 'copy'}"]
    copy, source = ImageSet(call("export", words)), ImageSet(one)
    assert len(copy) == 70
    assert copy.labels == source.labels[:70]
    expected = source.read(range(70))
    assert (copy.read(range(70)) == expected).all()  # an npz has three equal channels
    assert not list(tmp_path.glob(".*"))
    if form == "png":
        whole = members(one)
        assert pngs(tmp_path) == {}
        found = {f"images/{n}": (tmp_path / "copy" / n).read_bytes() for n in copy.names}
        assert found == {name: whole[name] for name in found}
    with pytest.raises(UserError, match="is there: choose another name"):
        call("export", words)


@pytest.mark.parametrize("out", ["", ".", "..", "a/.."])
def test_a_copy_needs_a_name(one, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="names no file or folder: give the name of the copy"):
        call("export", [f"images={one}", "format=zip", f"out='{out}'"])


def test_a_name_of_many_digits_is_no_number(one, tmp_path):
    names = ["1" * 5000, "2"]
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        for name, png in zip(names, members(one).values(), strict=False):
            archive.writestr(f"{name}.png", png)
    copy = call("export", [f"images={tmp_path}/long.zip", "format=zip", f"out={tmp_path}/copy"])
    assert ImageSet(copy).names == ["000000/000000.png", "000000/000001.png"]
