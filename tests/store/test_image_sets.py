"""Sets of images: which files count, labels, arrays, zips, and what is refused in a sentence."""

import os
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp.errors import UserError
from bdia_exp.store import archives
from bdia_exp.store.image_sets import ImageSet, is_image_set
from bdia_exp.store.listings import of_names

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)


def picture(path: Path, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ARRAY[0, ..., 0]).save(path, **how)
    return path


def zipped(path: Path, *names: str, data: bytes | None = None, how=zipfile.ZIP_DEFLATED) -> Path:
    """A zip with one picture, or `data`, under several names."""
    one = data if data is not None else picture(path.parent / "for-zip" / "x.png").read_bytes()
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", how) as archive:
        warnings.simplefilter("ignore")  # of two equal names
        for name in names:
            archive.writestr(name, one)
    return path


HIDDEN = [".ipynb_checkpoints/a.png", "._a.png", "__MACOSX/a.png", "b/.git/a.png", "..a.png"]
TYPES = ["a.PNG", "b.jpg", "c.JPEG", "d.jfif", "e.webp", "f.bmp", "g.gif", "h.tif", "i.TIFF"]


def test_every_suffix_in_any_case_is_a_picture_and_nothing_hidden_is(tmp_path):
    for name in TYPES:
        kind = {"jfif": "JPEG"}.get(name[2:])
        picture(tmp_path / "set" / name, format=kind)
        assert len(ImageSet(tmp_path / "set" / name)) == 1
    for name in HIDDEN:
        picture(tmp_path / "set" / name)
    (tmp_path / "set" / "folder.png").mkdir()
    for name in ("record.json", "labels.csv", "x.npz", "Thumbs.db", "read.txt"):
        (tmp_path / "set" / name).write_text("no picture")
    found = ImageSet(tmp_path / "set")
    assert found.names == TYPES
    assert found.notes == []
    assert found.read(range(9)).shape == (9, 3, 8, 9)  # JPEG and WebP are RGB here
    names = [*TYPES, *HIDDEN, "../up.png", "/root.png", "folder.png/"]
    assert len(ImageSet(zipped(tmp_path / "s.ZIP", *names))) == len(TYPES) + 2
    assert not (tmp_path.parent / "up.png").exists()


ORDER = [
    *("0.png", "7.png", "000017.png", "999000/999000.png", "1000000/1000000.png"),
    *("1000000/1000001.png", "1.5.png", "10a.png", "1a.png", "a b/x.png", "a.png"),
    *("a/2.png", "a/10.png", "a/x10.png", "a/x2.png", "b/1.png", "²/3.png"),
]


def test_names_that_are_numbers_are_in_their_order_and_others_in_that_of_their_text():
    for names in (ORDER, ORDER[::-1], sorted(ORDER)):
        assert of_names(names).pictures == ORDER
    assert of_names(["007.png", "7.png"]).pictures == of_names(["7.png", "007.png"]).pictures


def test_pictures_that_are_left_out_are_named_with_their_count(tmp_path):
    picture(tmp_path / "set/a.png")
    for name in ("b.heic", "c.AVIF", "d.jp2"):
        (tmp_path / "set" / name).write_bytes(b"")
    picture(tmp_path / "other/z.png")
    (tmp_path / "set/link").symlink_to(tmp_path / "other")
    formats, links = ImageSet(tmp_path / "set").notes
    assert "left out: 3 (b.heic, c.AVIF and 1 more); convert them to PNG" in formats
    assert "left out: 1 (link)" in links
    (tmp_path / "set/a.png").unlink()
    with pytest.raises(UserError, match=r"holds no images; .*left out: 3"):
        ImageSet(tmp_path / "set")


@pytest.mark.parametrize("what", ["pipe", "broken link", "device", "cut"])
def test_what_only_looks_like_a_picture_is_a_sentence(tmp_path, what):
    file = tmp_path / "set/b.png"
    data = picture(tmp_path / "set/a.png").read_bytes()
    {
        "pipe": lambda: os.mkfifo(file),
        "broken link": lambda: file.symlink_to("nowhere"),
        "device": lambda: file.symlink_to("/dev/zero"),
        "cut": lambda: file.write_bytes(data[:50]),
    }[what]()
    with pytest.raises(UserError, match=r"b.png is not a readable image \(.+\)"):
        ImageSet(tmp_path / "set").read([0, 1])
    if what == "pipe":
        with pytest.raises(UserError, match="is a pipe or a device"):
            ImageSet(file)
        assert not is_image_set(file)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-this-name/x", __file__])
def test_names_of_nothing(name):
    with pytest.raises(UserError, match=r"does not exist|no picture"):
        ImageSet(name)


def test_mixed_channels_are_rgb_and_mixed_sizes_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    Image.fromarray(ARRAY[1]).save(tmp_path / "b.png")
    both = ImageSet(tmp_path).read([0, 1])
    assert torch.equal(both[0], torch.from_numpy(ARRAY[0, ..., 0]).expand(3, -1, -1))
    assert torch.equal(both[1], torch.from_numpy(ARRAY[1]).permute(2, 0, 1))
    Image.new("L", (9, 7)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c.png is 9 × 7, others are 9 × 8: one size only"):
        ImageSet(tmp_path).read([0, 1, 2])


def test_transparent_images_are_counted(tmp_path):
    Image.new("RGBA", (9, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    for fit in (None, (1, 4, 4)):
        found = ImageSet(tmp_path, fit=fit)
        assert found.read([0, 1])[0].unique().tolist() == [255]
        assert found.transparent == 1
    np.save(tmp_path / "x.npy", np.full((3, 8, 8, 4), (1, 2, 3, 0), np.uint8))
    found = ImageSet(tmp_path / "x.npy")
    assert found.read([0, 2]).shape == (2, 3, 8, 8)
    assert found.transparent == 2


GOOD_TABLES = {
    b'{"labels": [["a.png", 3]]}': [3],
    b'{"labels": {"a.png": -1}}': [-1],
    b'\xef\xbb\xbf{"labels": [["a.png", 3], ["b.png", 4]], "more": Infinity}': [3],
    b'{"labels": null}': None,
    b"{}": None,
}
BAD_TABLES = [b"", b"[1, 2]", b"5", b"null", b'"labels"', b"[" * 100_000, b'{"a":' * 100_000]
BAD_TABLES += [b"\xff\xfe\x00", b'{"labels": 5}', b'{"labels": [1]}', b'{"labels": Infinity}']
BAD_TABLES += [b'{"labels": [["a.png"]]}', b'{"labels": [[["a"], 2]]}']
BAD_TABLES += [
    b'{"labels": [["a.png", %s]]}' % label
    for label in (b"Infinity", b"true", b"1.0", b'"1"', b"null", b"1e400", b"9" * 30, b"9" * 6000)
]


def test_labels_of_dataset_json(tmp_path):
    picture(tmp_path / "a.png")
    table = tmp_path / "dataset.json"
    for text, labels in GOOD_TABLES.items():
        table.write_bytes(text)
        assert ImageSet(tmp_path).labels == labels
    table.write_text('{"labels": [["b.png", 3]]}')
    found = ImageSet(tmp_path)
    assert found.labels is None
    assert "has no label for 1 of 1 images, such as a.png" in found.notes[0]
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(UserError, match=r"dataset.json is not a file"):
        ImageSet(tmp_path)


@pytest.mark.parametrize("text", BAD_TABLES, ids=lambda text: text[:40].decode("latin-1"))
def test_a_wrong_dataset_json_is_one_sentence(tmp_path, text):
    picture(tmp_path / "a.png")
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(UserError, match=r"\A.* dataset.json is not of the form .* remove it\Z"):
        ImageSet(tmp_path)


def test_arrays_are_read_by_rows_in_any_order(tmp_path):
    np.savez(tmp_path / "a.npz", ARRAY, np.arange(5))  # guided-diffusion's samples
    np.savez_compressed(tmp_path / "b.npz", ARRAY, np.arange(5, dtype=np.uint8))
    np.savez(tmp_path / "c.npz", np.asfortranarray(ARRAY), np.arange(5, dtype=np.uint64))
    np.save(tmp_path / "d.npy", ARRAY)
    shutil.copy(tmp_path / "a.npz", tmp_path / "E.NPZ")
    shutil.copy(tmp_path / "a.npz", tmp_path / "no-suffix")
    for file in sorted(tmp_path.iterdir()):
        assert is_image_set(file)
        found = ImageSet(file)
        for rows in ([0, 1], [4, 0], [2], range(5)):
            read = found.read(rows).permute(0, 2, 3, 1).numpy()
            assert np.array_equal(read, ARRAY[list(rows)])
        assert found.labels == (None if file.suffix == ".npy" else [0, 1, 2, 3, 4])
    np.savez(tmp_path / "f.npz", ARRAY, ARRAY)
    found = ImageSet(tmp_path / "f.npz")
    assert found.labels is None
    assert "arr_1 is uint8 [5, 8, 9, 3], not a class for each image" in found.notes[0]


def npy(kind: str, shape: str, data: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


BAD_ARRAYS = {
    "not uint8": npy("<f8", "(2, 2, 2, 1)", bytes(64)),
    "a row": npy("|u1", "(5,)", bytes(5)),
    "one image": npy("|u1", "(32, 32, 3)", bytes(3072)),
    "channels first": npy("|u1", "(2, 3, 32, 32)", bytes(6144)),
    "none": npy("|u1", "(0, 32, 32, 1)"),
    "no pixels": npy("|u1", "(2, 0, 32, 1)"),
    "10^15 bytes": npy("|u1", "(1000000000000, 32, 32, 1)", bytes(9)),
    "an image of 10^12 bytes": npy("|u1", "(0, 1000000, 1000000, 1)"),
    "negative": npy("|u1", "(-1, -2, 3, 4)", bytes(100)),
    "objects": npy("|O", "(3,)", b"\x80\x04N."),
    "a pickle": b"\x80\x04N.",
    "deep": b"\x93NUMPY\x01\x00" + struct.pack("<H", 3000) + b"(" * 3000,
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "another version": b"\x93NUMPY\x09\x00" + bytes(99),
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_wrong_arrays_are_one_sentence(tmp_path, what, suffix):
    file = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        file.write_bytes(BAD_ARRAYS[what])
    else:
        zipped(file, "arr_0.npy", data=BAD_ARRAYS[what])
    with pytest.raises(UserError, match=r"\A.*x.np. (cannot be read as|holds no) images.*\Z") as e:
        ImageSet(file)
    assert "pickle" not in str(e.value)


@pytest.mark.parametrize(
    "labels", [np.ones(5), np.ones(4, int), np.ones((5, 2), int), np.array([None] * 5)]
)
def test_wrong_labels_of_an_npz(tmp_path, labels):
    np.savez(tmp_path / "x.npz", images=ARRAY, labels=labels)
    with pytest.raises(UserError, match="labels"):
        ImageSet(tmp_path / "x.npz")


def test_hostile_zips(tmp_path):
    """Encrypted, packed by an unknown method, lying about sizes, flipped, cut, two of one name."""
    data = zipped(tmp_path / "x.zip", "a.png").read_bytes()
    at = data.index(b"PK\x01\x02")
    # Flags, method, a size of 1 byte and one of 4 GB, and a byte of the picture.
    size = data[at + 24] ^ 1
    for place, byte in ((at + 8, 1), (at + 10, 77), (at + 24, size), (at + 27, 255), (60, 255)):
        damaged = bytearray(data)
        damaged[place] ^= byte
        (tmp_path / "x.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.png is not a readable image \(.+\)"):
            ImageSet(tmp_path / "x.zip").read([0])
    (tmp_path / "x.zip").write_bytes(data[:100])
    with pytest.raises(UserError, match="not a readable zip"):
        ImageSet(tmp_path / "x.zip")
    with pytest.raises(UserError, match=r"two files of one name, a\.png"):
        ImageSet(zipped(tmp_path / "y.zip", "a.png", "a.png"))


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bombs_are_not_unpacked(tmp_path, monkeypatch, how):
    monkeypatch.setattr(archives, "LARGEST", 10**6)
    zipped(tmp_path / "x.zip", "a.png", data=bytes(10**7), how=how)
    with pytest.raises(UserError, match=r"a\.png is not a readable image \(more than"):
        ImageSet(tmp_path / "x.zip").read([0])


def test_a_broken_zip_does_not_hide_a_runs_folder(tmp_path):
    picture(tmp_path / "images/000000/000000.png")
    good = zipped(tmp_path / "good.zip", "a.png", "b.png").read_bytes()
    for zip_, count in ((good, 2), (good[:90], 1), (b"", 1)):
        (tmp_path / "images.zip").write_bytes(zip_)
        assert len(ImageSet(tmp_path)) == count
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"images.zip cannot be read as images"):
        ImageSet(tmp_path)


def test_a_contact_sheet_is_not_the_images_of_a_run(tmp_path):
    for name in ("record.json", "config.yaml"):
        (tmp_path / name).write_text("{}")
    picture(tmp_path / "sheet.png")
    with pytest.raises(UserError, match="is a run without images"):
        ImageSet(tmp_path)
