"""Captions by rule: they say what the image shows, and every word is one token."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bdia_exp.metrics.colours import TINTS, colour_of, grey_of
from bdia_exp.sources import prompts
from bdia_exp.sources.checkpoints import BUNDLED

from .test_scripts import script


@pytest.fixture(scope="module")
def module():
    return script("captions")


def squares(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of random sizes, half of them with stripes."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 32, 32, 1), np.uint8)
    for image in images:
        w, h, value = rng.integers(6, 15), rng.integers(6, 15), rng.integers(80, 256)
        image[16 - h : 16 + h, 16 - w : 16 + w] = value
        if rng.random() < 0.5:
            image[:, ::4] //= 2
    return images, np.arange(count, dtype=np.uint8) % 10


@pytest.fixture(scope="module")
def made(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    for split, count in (("train", 300), ("test", 100)):
        images, labels = squares(count)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    done = CliRunner().invoke(module.main, ["--data", str(folder), "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return folder / "out"


def test_images_have_the_colours_that_their_captions_name(module, made):
    train = np.load(made / "train.npz")
    images = torch.from_numpy(train["images"]).permute(0, 3, 1, 2)
    assert colour_of(images).tolist() == train["colours"].tolist()
    assert np.array_equal(grey_of(images)[:, 0].numpy(), squares(300)[0][..., 0])
    assert len({*train["colours"].tolist()}) == 8
    named = 0
    for texts, label, colour in zip(
        train["captions"], train["labels"], train["colours"], strict=True
    ):
        for text in texts:
            assert any(noun in text for noun in module.NOUNS[label]), text
            colours = [name for name in TINTS if name in text.split()]
            assert colours in ([], [module.COLOURS[colour]]), text
            assert " a o" not in f" {text}", text
            named += len(colours)
    assert 0.8 < named / train["captions"].size < 0.95


def test_measured_words(module):
    grey = np.zeros((3, 32, 32), np.uint8)
    grey[0, 4:28, 12:20] = 90
    grey[1, 4:28, 4:28] = 200
    grey[2, 4:28, 8:24] = 150
    grey[2, ::2] //= 2
    found = module.measured(grey)
    assert found["width"].tolist() == [8, 24, 16]
    assert found["brightness"] == pytest.approx([90 / 255, 200 / 255, 0.75 * 150 / 255], abs=0.01)
    assert found["pattern"][2] > 0.1 > found["pattern"][:2].max()
    limits = {name: np.array([np.sort(values)[:2] + 1e-9]) for name, values in found.items()}
    limits["pattern"][0] = [-1, 0.1]
    words = module.words_of(found, limits, np.zeros(3, int))
    assert words.tolist()[1] == ["bright", "wide", ""]
    assert words.tolist()[2][2] == "patterned"


def test_every_word_is_one_token_and_others_are_spelled(module, made):
    transformers = pytest.importorskip("transformers")
    given = transformers.CLIPTokenizer.from_pretrained(made / "tokenizer")
    vocab = json.loads((made / "tokenizer/vocab.json").read_text())
    assert len(given) == len(vocab) == 1 + max(vocab.values())
    tokens = given.tokenize("a photo of a bright red t-shirt with short sleeves")
    assert [token.removesuffix("</w>") for token in tokens] == (
        ["a", "photo", "of", "a", "bright", "red", "t", "-", "shirt", "with", "short", "sleeves"]
    )
    assert given.tokenize("fox") == ["f", "o", "x</w>"]


def test_the_bundled_prompts_name_their_class_and_colour(module):
    with open(BUNDLED / "fashion_captions.csv", encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == len(prompts.read("bundled:fashion_captions.csv", None).captions) == 1000
    for row in rows:
        assert any(noun in row["prompt"] for noun in module.NOUNS[int(row["class"])])
        assert [name for name in TINTS if name in row["prompt"].split()] == [row["colour"]]
    assert [sum(row["class"] == str(k) for row in rows) for k in range(10)] == [100] * 10
