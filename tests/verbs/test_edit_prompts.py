"""Edits in which each image has its own prompt, from a file; and the bundled edits of garments."""

import csv
import json

import pytest
import torch
from PIL import Image

from bdia_exp.errors import UserError
from bdia_exp.metrics.colours import TINTS, colour_of
from bdia_exp.metrics.features import garments
from bdia_exp.metrics.garments import asked_of
from bdia_exp.sources.checkpoints import BUNDLED
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.verbs.edit import _as_asked
from bdia_exp.verbs.edits import _numbers

from .test_text import do

TINY = ("model=tiny-sd", "device=cpu", "nfe=5", "strength=0.8")
ROWS = {"a cat": "a dog", "a red car": "a blue car", "an owl": "a hen"}


@pytest.fixture
def folder(tmp_path):
    for k in range(3):
        pixels = torch.full((64, 64, 3), 40 + 70 * k, dtype=torch.uint8)
        pixels[20 : 40 + 5 * k, 10:50, k] = 250
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"images/{k}.png")
    with open(tmp_path / "edits.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "to"], *ROWS.items()])
    return tmp_path


def test_each_image_is_edited_with_its_own_prompts(folder, capsys):
    """The images are those of three edits, each with one prompt for one image."""
    images = f"images={folder / 'images'}"
    words = (*TINY, f"pairs={folder / 'edits.csv'}", "batch=2")
    record = do("edit", images, *words, f"out={folder / 'all'}")
    assert record["inversion_error"]["rms"] == 0
    every = ImageSet(folder / "all").read(range(3))
    for k, (prompt, to) in enumerate(ROWS.items()):
        one = (f"images={folder / f'images/{k}.png'}", f"prompt={prompt}", f"to={to}")
        do("edit", *TINY, *one, f"out={folder / str(k)}")
        assert torch.equal(ImageSet(folder / str(k)).read([0])[0], every[k]), prompt
    text = (folder / "edits.csv").read_text()
    (folder / "edits.csv").write_text(text.replace("hen", "cow"))
    with pytest.raises(UserError, match=r"holds another experiment \(pairs_sha256"):
        do("edit", images, *words, f"out={folder / 'all'}")


def test_edits_by_a_file_are_compared_and_named(folder):
    words = (f"pairs={folder / 'edits.csv'}", "methods=ddim", "steps=2", "settings=model=tiny-sd")
    do("edits", f"images={folder / 'images'}", *words, f"out={folder / 'edits'}", "device=cpu")
    title = (folder / "edits/edits.md").read_text().splitlines()[0]
    assert title == f"# Edits by {folder / 'edits.csv'}, 3 images"


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        ("prompt\na\nb\nc\n", (), "has no column to; its columns: prompt"),
        ("prompt,to\na,b\n", (), "has 1 texts in the column prompt, and there are 3 images"),
        ("prompt,to\na,b\nc, \nd,e\n", (), "has no text in the column to in line 3"),
        (
            "prompt,to\na,b\n",
            ("prompt=x",),
            "pairs= has the prompts of the images: leave prompt= out",
        ),
        ("prompt,to\na,b\n", ("to=x",), r"give to=, the new class or the new prompt, or pairs="),
        ("prompt,to\na,b\n", ("model=fashion_mini", "class=1"), "pairs=: this model takes no"),
    ],
)
def test_a_file_that_does_not_fit_is_said(table, words, message, folder):
    (folder / "wrong.csv").write_text(table)
    given = (f"images={folder / 'images'}", f"pairs={folder / 'wrong.csv'}", *TINY, *words)
    with pytest.raises(UserError, match=message):
        do("edit", *given, f"out={folder / 'run'}")
    assert not (folder / "run").exists()


def test_an_edit_without_a_new_prompt(folder):
    with pytest.raises(UserError, match="give to=, the new class or the new prompt, or pairs="):
        do("edit", f"images={folder / 'images'}", *TINY, "prompt=a", f"out={folder / 'run'}")


@pytest.mark.parametrize("kind", ["colour", "class"])
def test_the_bundled_edits_are_of_the_bundled_images(kind):
    """200 held-out images; their prompts say what they show, and what differs is what is edited."""
    images = ImageSet(BUNDLED / "fashion_edits.zip").read(range(200))
    with open(BUNDLED / f"fashion_edits_{kind}.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 200
    shown, wanted = ([asked_of(row[key]) for row in rows] for key in ("prompt", "to"))
    assert [colour for _, colour in shown] == colour_of(images).tolist()
    logits = garments()(images).logits
    right = sum(a == b for (a, _), b in zip(shown, logits.argmax(1).tolist(), strict=True))
    assert right > 170  # the classifier itself is wrong on some
    place, other = (1, 0) if kind == "colour" else (0, 1)
    assert all(
        a[place] != b[place] and a[other] == b[other] for a, b in zip(shown, wanted, strict=True)
    )
    assert {label for label, _ in shown} == {*range(10)}
    assert {colour for _, colour in shown} == {*range(len(TINTS))}


def test_the_interval_of_a_share_is_of_the_images_that_were_judged():
    """Ten images, of which the prompts of three name a colour."""
    images = ImageSet(BUNDLED / "fashion_edits.zip").read(range(10))
    found = _as_asked(garments(), images, lambda k: "a red bag" if k < 3 else "a bag")
    assert found["judged"] == {"class": 10, "colour": 3}
    rms = {"rms": 1.0}
    record = {"pixel_error": rms, "edit_distance": rms, "nfe": 1, "nfe_back": 1, "images": 100}
    record |= {"noise": {**rms, "expected_rms": 1.0}, "as_asked": {"class": 0.9, "colour": 0.9}}
    before = _numbers(record)  # of an earlier release
    assert before["colour as asked"] == before["class as asked"] == "90 % (83 % to 94 %)"
    now = _numbers(record | {"judged": {"class": 100, "colour": 30}})
    assert now["class as asked"] == before["class as asked"]
    assert now["colour as asked"] == "90 % (74 % to 97 %)"


def test_an_edit_of_bundled_garments_is_judged(tmp_path):
    words = ("model=mini_sd", "pairs=bundled:fashion_edits_colour.csv", "classify=true", "nfe=10")
    limits = ("limit=6", "strength=0.8", "sampler.gamma=0.96", "device=cpu")
    record = do(
        "edit", "images=bundled:fashion_edits.zip", *words, *limits, f"out={tmp_path / 'run'}"
    )
    assert record["inversion_error"]["rms"] == 0
    assert record["as_asked"]["colour"] >= 0.5
    assert json.loads((tmp_path / "run/record.json").read_text())["change_outside"] > 0
