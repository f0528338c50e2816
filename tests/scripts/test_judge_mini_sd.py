"""Judging mini_sd: which prompt an image belongs to, and what is counted."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bdia_exp.metrics.colours import TINTS, tinted
from bdia_exp.sources.checkpoints import BUNDLED
from bdia_exp.store.pictures import to_pil

from .test_scripts import script

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
COUNT = 80  # more than the dimensions of the features


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run whose every fourth image has another colour than its prompt asks for."""
    folder = tmp_path_factory.mktemp("judge")
    with open(BUNDLED / "fashion_captions.csv", encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)][-COUNT:]
    colours = torch.tensor([[*TINTS].index(row["colour"]) for row in rows])
    drawn = torch.where(torch.arange(COUNT) % 4 == 0, (colours + 1) % 8, colours)
    grey = torch.randint(0, 256, (COUNT, 1, 32, 32), dtype=torch.uint8)
    (folder / "images").mkdir()
    for k, image in enumerate(tinted(grey, drawn)):
        to_pil(image).save(folder / "images" / f"{k:06d}.png")
    with open(folder / "prompts.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["seed", "image", "prompt"]])
        csv.writer(file).writerows([k, row["image"], row["prompt"]] for k, row in enumerate(rows))
    test = np.zeros((1 + max(int(row["image"]) for row in rows), 32, 32, 3), np.uint8)
    real = tinted(grey, colours).permute(0, 2, 3, 1).numpy()
    test[[int(row["image"]) for row in rows]] = real
    np.savez(folder / "test.npz", images=test)
    words = [str(folder), "--data", str(folder), "--out", str(folder / "out")]
    done = CliRunner().invoke(script("judge_mini_sd").main, words)
    assert done.exit_code == 0, done.output
    return folder / "out"


def test_colours_are_counted_by_prompt(judged):
    found = json.loads((judged / "judged.json").read_text())
    assert found["generated"]["colour"] == 0.75
    assert found["test images"]["colour"] == 1.0
    assert {numbers["images"] for numbers in found.values()} == {COUNT}
    for numbers in found.values():
        assert numbers["both"] <= min(numbers["class"], numbers["colour"])
        assert numbers["fid"] > 10  # noise is no garment
    assert 3 < found["autoencoder"]["psnr"] < 30


def test_the_sheet_has_a_row_for_each_class(judged):
    with Image.open(judged / "judged.png") as sheet:
        assert sheet.width > 8 * 64
        assert sheet.height >= 10 * 64
