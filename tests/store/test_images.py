"""Images on disk: whole or not at all, the same bytes every time, readable in every form."""

import errno
import json
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp.errors import UserError
from bdia_exp.store.files import atomic, atomic_folder, write_text
from bdia_exp.store.image_sets import ImageSet, is_image_set
from bdia_exp.store.images import Folder, contact_sheet
from bdia_exp.store.locks import lock, unlock
from bdia_exp.store.runs import RunFolder


@pytest.fixture
def images():
    return torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_round_trip(tmp_path, channels):
    images = torch.randint(256, (3, channels, 8, 8), dtype=torch.uint8)
    folder = Folder(tmp_path)
    seeds = [0, 999, 50123]
    assert not folder.has(seeds)
    folder.write(seeds, images)
    assert folder.has(seeds)
    assert (tmp_path / "images/050000/050123.png").exists()
    assert torch.equal(folder.read(seeds), images)
    assert not list(tmp_path.rglob("*.part"))


def test_zip_is_the_same_bytes_whenever_it_is_made(tmp_path, images):
    packed = []
    for name in "ab":
        folder = Folder(tmp_path / name)
        order = [0, 1, 2, 3] if name == "a" else [3, 1, 0, 2]
        for k in order:
            folder.write([k], images[k : k + 1])
        folder.label([0, 1, 2, 3], [5, 6, 7, 8])
        folder.pack(range(4))
        packed.append((tmp_path / name / "images.zip").read_bytes())
        assert not (tmp_path / name / "images").exists()
    assert packed[0] == packed[1]
    with zipfile.ZipFile(tmp_path / "a/images.zip") as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        assert archive.namelist()[0] == "000000/000000.png"
    found = ImageSet(tmp_path / "a")
    assert found.labels == [5, 6, 7, 8]
    assert torch.equal(found.read(range(4)), images)


@pytest.mark.parametrize("form", ["run", "folder", "zip", "npz", "unnamed npz"])
def test_image_set_reads_every_form(tmp_path, images, form):
    folder = Folder(tmp_path)
    folder.write(range(4), images)
    source = {"run": tmp_path, "folder": tmp_path / "images"}.get(form, tmp_path / "set.npz")
    if form == "zip":
        folder.pack(range(4))
        source = tmp_path / "images.zip"
    if form == "npz":
        np.savez(source, labels=np.arange(4), images=images.permute(0, 2, 3, 1).numpy())
    if form == "unnamed npz":
        np.savez(source, images.permute(0, 2, 3, 1).numpy())
    assert is_image_set(Path(source))
    found = ImageSet(source)
    assert len(found) == 4
    assert torch.equal(found.read([2, 0]), images[[2, 0]])
    assert found.labels == ([0, 1, 2, 3] if form == "npz" else None)


def test_statistics_are_not_images(tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert not is_image_set(tmp_path / "ref.npz")


def test_bad_image_sets(tmp_path, images):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "mixed/a.png")
    Image.new("L", (5, 4)).save(tmp_path / "mixed/b.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"\x89PNG not really")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 4, 4, 3)))
    for name in ("absent", "empty", "text.npz", "float.npz"):
        with pytest.raises(UserError, match=name):
            ImageSet(tmp_path / name)
    with pytest.raises(UserError, match="one size only"):
        ImageSet(tmp_path / "mixed").read([0, 1])
    with pytest.raises(UserError, match="not a readable image"):
        ImageSet(tmp_path / "broken").read([0])


def test_temporary_files_of_killed_processes_do_not_stay_for_ever(tmp_path):
    old, new = tmp_path / ".record.json.123.part", tmp_path / ".record.json.124.part"
    for part in (old, new):
        part.write_text("half")
    os.utime(old, (0, 0))
    write_text(tmp_path / "record.json", "whole")
    assert not old.exists()
    assert new.exists()  # perhaps another process writes it


def test_a_folder_is_there_when_all_is_in_it(tmp_path):
    left = [tmp_path / f".new.{socket.gethostname()}.{os.getpid()}.part", tmp_path / ".new.1.part"]
    for part in left:  # of killed processes, one of which had this process's number
        part.mkdir()
        (part / "half").write_text("half")
    os.utime(left[1], (0, 0))
    with atomic_folder(tmp_path / "new") as part:
        assert not (tmp_path / "new").exists()
        (part / "whole").write_text("whole")
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "whole"]
    with pytest.raises(UserError, match="no room left"), atomic_folder(tmp_path / "full"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.glob(".*"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "record.json"
    write_text(file, "old")

    def interrupted():
        with atomic(file) as part:
            part.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["record.json"]


def test_full_disk_is_one_sentence(tmp_path):
    """/dev/full answers every write as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write():
        with atomic(tmp_path / "image.png"), open("/dev/full", "wb") as full:
            full.write(b"x")
            full.flush()

    with pytest.raises(UserError, match="no room left"):
        write()
    assert not list(tmp_path.iterdir())


def test_other_write_errors_name_the_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*choose another out="):
        write_text(tmp_path / "file" / "record.json", "x")


def test_contact_sheet_places_images():
    images = torch.stack([torch.full((1, 2, 2), v, dtype=torch.uint8) for v in (10, 20, 30)])
    sheet = np.array(contact_sheet(images, 2, gap=1, scale=1))
    white = 255
    expected = [
        [10, 10, white, 20, 20],
        [10, 10, white, 20, 20],
        [white] * 5,
        [30, 30, white, white, white],
        [30, 30, white, white, white],
    ]
    assert sheet.tolist() == expected


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (64, 64)),
        ((128, 128), (256, 256)),
        ((129, 64), (129, 64)),
        ((256, 256), (256, 256)),
        ((512, 512), (256, 256)),
        ((300, 600), (128, 256)),
    ],
)
def test_contact_sheet_shows_large_images_at_a_readable_size(size, shown):
    sheet = contact_sheet(torch.zeros(1, 3, *size, dtype=torch.uint8), 1)
    assert (sheet.height, sheet.width) == shown


def test_contact_sheet_averages_large_images():
    images = torch.randint(256, (2, 3, 512, 512), dtype=torch.uint8)
    sheet = torch.from_numpy(np.array(contact_sheet(images, 2))).permute(2, 0, 1)
    mean = torch.nn.functional.avg_pool2d(images.float(), 2)
    assert (sheet[:, :, :256] - mean[0]).abs().max() <= 1  # rounded twice
    assert (sheet[:, :, 257:] - mean[1]).abs().max() <= 1
    assert (sheet[:, :, 256] == 255).all()


def test_dataset_json_is_in_the_form_that_edm_reads(tmp_path, images):
    folder = Folder(tmp_path)
    folder.write([0, 1], images[:2])
    folder.label([0, 1], [3, 4])
    rows = json.loads((tmp_path / "images/dataset.json").read_text())["labels"]
    assert rows == [["000000/000000.png", 3], ["000000/000001.png", 4]]


def test_taking_a_folder_leaves_the_temporary_files_of_runs_below_it(tmp_path):
    own, other = tmp_path / "shards", tmp_path / "other" / "shards"
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / ".0.zip.node7.12.part").write_bytes(b"half")
    lock(tmp_path / "other")
    run = RunFolder(tmp_path)
    run.begin({}, {})
    run.leave()
    unlock(tmp_path / "other")
    assert not list(own.iterdir())
    assert [file.name for file in other.iterdir()] == [".0.zip.node7.12.part"]
