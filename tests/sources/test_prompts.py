"""Captions: the same choice from all files that hold the same ones, one sentence otherwise."""

import csv
import hashlib
import io
import json
import random
import zipfile
from pathlib import Path

import pytest

from bdia_exp.errors import UserError
from bdia_exp.sources import fetch, prompts
from bdia_exp.store import archives

# (image, caption): three captions of each of 20 images, interleaved; one with a comma and quotes.
CAPTIONS = [(image, f'Picture {image}, "view" {view}') for view in "abc" for image in range(7, 27)]
MEMBER = "annotations/captions_val2014.json"


def annotations(captions=CAPTIONS) -> str:
    rows = [{"image_id": i, "id": n, "caption": c} for n, (i, c) in enumerate(captions)]
    return json.dumps({"info": {}, "images": [], "annotations": rows})


def table(captions=CAPTIONS, columns=("coco_id", "prompt"), **how) -> str:
    """With the further columns that lists of prompts have."""
    file = io.StringIO()
    writer = csv.writer(file, **how)
    writer.writerow(["case_number", *columns, "evaluation_seed"])
    writer.writerows([n, *caption, 41337 + n] for n, caption in enumerate(captions))
    return file.getvalue()


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (members or {MEMBER: annotations()}).items():
            archive.writestr(name, text)
    return path


def written(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# -- the choice ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path) -> str:
    return written(tmp_path / "captions.json", annotations())


def test_the_choice_is_the_one_of_the_hashes(source):
    chosen = prompts.read(source, 3)
    images = sorted(range(7, 27), key=lambda image: digest(f"3:{image}"))
    assert [image for _, image, _ in chosen.rows(range(20))] == [str(i) for i in images]
    for seed, image in enumerate(images):
        own = [caption for i, caption in CAPTIONS if i == image]
        assert chosen(seed) == min(own, key=lambda caption: digest(f"3:{image}:{caption}"))
    assert {chosen(seed)[-1] for seed in range(20)} == set("abc")


def test_without_a_seed_it_is_the_files_order(source):
    chosen = prompts.read(source, None)
    assert chosen.captions == tuple((str(image), text) for image, text in CAPTIONS[:20])


def test_one_caption_an_image_and_then_again(source):
    for seed in (None, 0, 1):
        chosen = prompts.read(source, seed)
        assert {image for image, _ in chosen.captions} == {str(image) for image in range(7, 27)}
        assert len(chosen.captions) == 20
        assert [chosen(k) for k in range(40, 60)] == [chosen(k) for k in range(20)]


def test_the_order_of_the_file_does_not_matter(tmp_path, source):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    other = written(tmp_path / "other.json", annotations(shuffled))
    assert prompts.read(source, 0).captions == prompts.read(other, 0).captions
    assert prompts.read(source, None).captions != prompts.read(other, None).captions
    lines = [f"prompt {n % 7}" for n in range(30)]
    for name in ("a.txt", "b.txt"):
        written(tmp_path / name, "\n".join(lines))
        random.Random(0).shuffle(lines)
    a, b = (prompts.read(str(tmp_path / name), 0) for name in ("a.txt", "b.txt"))
    assert a.captions == b.captions
    assert len(a.captions) == 30  # equal lines are images of their own


def test_another_seed_is_another_choice_and_another_record(source):
    choices = [prompts.read(source, seed) for seed in (None, 0, 1)]
    assert len({choice.captions for choice in choices}) == 3
    assert len({choice.provenance["sequence_sha256"] for choice in choices}) == 3
    again = prompts.read(source, 1)
    assert again == choices[2]
    assert again.provenance == {
        "source": "captions.json",
        "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        "seed": 1,
        "count": 20,
        "sequence_sha256": digest("".join(f"{i}\t{t}\n" for i, t in again.captions)),
    }


@pytest.mark.parametrize("seed", [None, 0])
def test_all_files_of_the_same_captions_give_the_same(tmp_path, source, seed):
    sources = [
        zipped(tmp_path / "c.zip"),
        tmp_path / "c.csv",
        tmp_path / "c.TSV",
        tmp_path / "bom.csv",
    ]
    written(sources[1], table())
    written(sources[2], table(columns=("image_id", "caption"), delimiter="\t"))
    written(sources[3], b"\xef\xbb\xbf" + table(columns=("image", " Text ")).encode())
    expected = prompts.read(source, seed).captions
    for other in sources:
        assert prompts.read(str(other), seed).captions == expected


def test_only_the_one_member_of_a_zip_is_read(tmp_path):
    path = zipped(tmp_path / "c.zip", **{"../evil.json": "x" * 100, MEMBER: annotations()})
    data = bytearray(path.read_bytes())
    start = data.index(b"../evil.json") + len("../evil.json")
    data[start : start + 2] = b"\xff\xff"  # what is in the other one cannot even be unpacked
    assert len(prompts.read(written(path, bytes(data)), 0).captions) == 20
    assert [file.name for file in tmp_path.rglob("*")] == ["c.zip"]


def test_whitespace_is_tidied_and_empty_captions_are_dropped(tmp_path):
    captions = [(1, " \n"), (1, " A dog\nand  a\tcat.\r\n"), (2, "")]
    for name, text in [("a.json", annotations(captions)), ("a.csv", table(captions))]:
        for seed in (None, 0):
            chosen = prompts.read(written(tmp_path / name, text), seed)
            assert chosen.captions == (("1", "A dog and a cat."),)
    lines = prompts.read(written(tmp_path / "a.txt", "one\r\n\r\n two \n"), None)
    assert lines.captions == (("", "one"), ("", "two"))


def test_rows_without_an_image_are_images_of_their_own(tmp_path):
    path = written(tmp_path / "a.csv", "Prompt\na cat\na dog\na cat\n")
    assert list(prompts.read(path, None).rows([2, 3])) == [(2, "", "a cat"), (3, "", "a cat")]
    assert len(prompts.read(path, 0).captions) == 3


def test_with_a_column_every_row_is_an_image(tmp_path):
    """Those of the same picture too: several edits of it."""
    path = written(tmp_path / "a.csv", "image,prompt,to\n1,a cat,a dog\n1,a cat,a cow\n")
    for column, texts in (("prompt", ["a cat", "a cat"]), ("to", ["a dog", "a cow"])):
        assert [text for *_, text in prompts.read(path, None, column).rows(range(2))] == texts
    with pytest.raises(UserError, match=r"not a file of prompts: give one of \.csv, \.tsv"):
        prompts.read(written(tmp_path / "a.txt", "a cat\n"), None, "to")


def test_one_text_for_all():
    always = prompts.of_text("  a red\n bus ")
    assert {always(seed) for seed in range(9)} == {"a red bus"}
    assert always.provenance["text"] == "a red bus"
    assert always.provenance != prompts.of_text("").provenance
    assert prompts.of_text("")(3) == ""


def test_what_a_run_drew_can_be_read_again(tmp_path, source):
    chosen = prompts.read(source, 5)
    chosen.write(tmp_path / "run" / "prompts.csv", range(30))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["prompts.csv"]
    lines = (tmp_path / "run" / "prompts.csv").read_text().splitlines()
    image, text = chosen.captions[0]
    assert lines[:2] == ["seed,image,prompt", f'0,{image},"{text.replace(chr(34), chr(34) * 2)}"']
    assert len(lines) == 31
    again = prompts.read(str(tmp_path / "run" / "prompts.csv"), None)
    assert again.captions == chosen.captions


# -- what is refused -----------------------------------------------------------------------------

TABLE = "image_id,caption\n1,a cat\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.csv",
            "url,title\n1,a cat\n",
            "has no column prompt, text, caption; its .*: url, title",
        ),
        ("a.csv", "", "has no column .*: none$"),
        ("a.csv", 'prompt\n"a cat\na dog\n', "is no table .unexpected end.*after line 1$"),
        ("a.csv", 'prompt\n"a "cat\n', "is no table .*marks after line 1$"),
        ("a.csv", "prompt\n" + "a" * 200_000, "is no table .*field larger than"),
        ("a.csv", "prompt,image\na cat, a dog,3\n", "too many cells in line 2: quote"),
        ("a.csv", TABLE.encode() + b"2,caf\xe9\n", "is not UTF-8 text: save it as UTF-8"),
        ("a.tsv", TABLE, "has no column .*: image_id,caption$"),
        ("a.csv", "prompt\n\n  \n", "holds no captions"),
        ("a.txt", "", "holds no captions"),
        ("a.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("a.json", "{", "is not valid JSON: fetch it again"),
        ("a.json", "[" * 100_000, "is not valid JSON"),
        ("a.json", b"\xff", "is not UTF-8 text"),
        ("a.json", "[]", "is not of the form of COCO's captions"),
        ("a.json", '{"annotations": {}}', "is not of the form"),
        ("a.json", '{"annotations": [{"image_id": 1, "bbox": []}]}', "is not of the form"),
        ("a.json", '{"annotations": [{"image_id": null, "caption": "a"}]}', "is not of the form"),
        ("a.json", '{"annotations": [{"image_id": 1, "caption": "\\ud800"}]}', "is not UTF-8"),
        ("a.json", '{"annotations": []}', "holds no captions"),
        ("a.zip", "PK", "is not a readable zip"),
        ("a.parquet", "", r"is not a file of prompts: give one of \.json, \.zip, \.csv, \.tsv"),
    ],
)
def test_refusals(tmp_path, name, content, told):
    path = written(tmp_path / name, content)
    for seed in (None, 0):
        with pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z){path} .*({told})"):
            prompts.read(path, seed)


def test_other_zips(tmp_path):
    other = zipped(tmp_path / "a.zip", **{"annotations/captions_val2017.json": annotations()})
    with pytest.raises(UserError, match=f"holds no {MEMBER} but annotations/captions_val2017.json"):
        prompts.read(str(other), 0)
    data = zipped(tmp_path / "b.zip").read_bytes()
    start = data.index(MEMBER.encode()) + len(MEMBER)
    for damaged in (data[: len(data) // 2], data[:start] + b"\xff" * 9 + data[start + 9 :]):
        with pytest.raises(UserError, match="is not a readable zip: fetch it again"):
            prompts.read(written(tmp_path / "b.zip", damaged), 0)
    instances = zipped(tmp_path / "c.zip", **{MEMBER: "{}"})
    with pytest.raises(UserError, match="is not of the form"):
        prompts.read(str(instances), 0)


def test_hostile_zips(tmp_path, monkeypatch):
    """Encrypted, packed by an unknown method, two members of one name, and too large."""
    path = zipped(tmp_path / "a.zip")
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    for place, byte in ((at + 8, 1), (at + 10, 77), (at + 24, 9)):  # flags, method, size
        damaged = bytearray(data)
        damaged[place] = byte
        with pytest.raises(UserError, match=r"is not a readable zip: fetch it again \("):
            prompts.read(written(path, bytes(damaged)), 0)
    zipped(path, **{MEMBER: annotations(), MEMBER.replace("2014", "2017"): "{}"})
    written(path, path.read_bytes().replace(b"val2017", b"val2014"))
    with pytest.raises(UserError, match="two files of one name"):
        prompts.read(str(path), 0)
    monkeypatch.setattr(archives, "LARGEST", 100)
    for name in ("b.zip", "b.txt"):
        written(tmp_path / name, data if name == "b.zip" else "line\n" * 100)
        with pytest.raises(UserError, match="more than 256 MiB"):
            prompts.read(str(tmp_path / name), 0)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name, told in [
        (str(tmp_path / "none.csv"), "nothing is at"),
        (str(tmp_path / "folder.csv"), "cannot be read: "),
        ("bundled:caption.csv", "no bundled file is called"),
        ("fetch:captions", "no published file is called"),
    ]:
        with pytest.raises(UserError, match=told):
            prompts.read(name, 0)


# -- captions that are real ----------------------------------------------------------------------


def test_the_bundled_captions():
    """The first 1,000 of a list of 30,000, in the order of seed 0: so that order is their own."""
    bundled = prompts.read("bundled:captions.csv", 0)
    assert bundled.captions == prompts.read("bundled:captions.csv", None).captions
    assert len({image for image, _ in bundled.captions}) == len(bundled.captions) == 1000
    assert bundled(0) == "A cat sleeping next to a pile of stuffed animals."
    assert all(text == " ".join(text.split()) and text.isascii() for _, text in bundled.captions)


def test_cocos_own_captions():
    if not fetch.cached("annotations_trainval2014.zip"):
        pytest.skip("annotations_trainval2014.zip is not in the cache: bdia-exp fetch brings it")
    path = fetch.get("annotations_trainval2014.zip")
    assert len(prompts._zipped(path)) == 202_654
    assert len(prompts.read("fetch:annotations_trainval2014.zip", 0).captions) == 40_504
