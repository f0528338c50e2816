"""Prompts are understood as their captions were written."""

import csv

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.metrics.colours import tinted
from bdia_exp.metrics.features import bundled, garments
from bdia_exp.metrics.garments import (
    COLOUR_OF,
    NOTHING,
    JudgesPrompts,
    asked_of,
    change_outside,
    shares_of,
)
from bdia_exp.metrics.score import Score
from bdia_exp.sources.checkpoints import BUNDLED


@pytest.mark.quick
def test_every_held_out_prompt_is_understood():
    with open(BUNDLED / "fashion_captions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000
    for row in rows:
        assert asked_of(row["prompt"]) == (int(row["class"]), COLOUR_OF[row["colour"]])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a T-Shirt", (0, NOTHING)),
        ("a blue shirt", (6, COLOUR_OF["blue"])),
        ("a photo of boots", (NOTHING, NOTHING)),
        ("a red dress and a blue coat", (NOTHING, NOTHING)),
        ("a dress, a red dress", (3, COLOUR_OF["red"])),
        ("", (NOTHING, NOTHING)),
    ],
)
def test_only_what_a_prompt_names_once_is_asked_for(prompt, found):
    assert asked_of(prompt) == found


@pytest.mark.quick
def test_images_are_judged_by_their_class_and_colour(garment):
    judge = garments()
    assert isinstance(judge, JudgesPrompts)
    colour = COLOUR_OF["green"]
    images = tinted(garment, torch.tensor([colour] * len(garment)))
    prompts = ["green trousers", "red trousers", "a green bag", "trousers", "nothing"]
    images = images.repeat(5, 1, 1, 1)
    found = judge.obeyed(images, judge(images).logits, prompts)
    assert found.tolist() == [[1, 1], [1, 0], [0, 1], [1, NOTHING], [NOTHING, NOTHING]]
    assert shares_of((found == 1).sum(0), (found != NOTHING).sum(0)) == {
        "class": 3 / 4,
        "colour": 2 / 3,
    }
    assert shares_of(torch.zeros(2), torch.zeros(2)) == {}


@pytest.mark.quick
def test_the_change_outside_a_garment():
    before = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    before[..., :2] = 200
    after = before.clone()
    after[..., :2] = 90  # the garment
    assert change_outside(after, before) == 0
    after[..., 2:] = 10
    assert change_outside(after, before) == 10
    assert change_outside(after, torch.full_like(before, 255)) == 0


@pytest.fixture(scope="module")
def garment():
    """A pair of trousers from fashion_mini: uint8 [1, 1, 32, 32]."""
    from bdia_exp.cli.configs import settings
    from bdia_exp.jobs.sampling import Job

    job = Job.of(settings("sample", ["class=1", "sampler=ddim", "nfe=8"]), "cpu")
    states = job.sample([3], lambda: None).states
    return job.model.decode(states)


@pytest.mark.quick
def test_a_score_counts_what_is_as_asked_by_blocks_of_seeds(garment):
    score = Score(garments(), None, ["fid", "prompt"], blocks=4)
    images = tinted(garment, torch.tensor([COLOUR_OF["green"]])).repeat(8, 1, 1, 1)
    prompts = ["green trousers"] * 4 + ["red trousers"] * 3 + ["trousers"]
    score.update(images, None, range(8), prompts)
    right, judged = score.as_asked.compute()
    assert right.tolist() == [[2, 1], [2, 1], [2, 1], [2, 1]]
    assert judged.tolist() == [[2, 2], [2, 2], [2, 2], [2, 1]]
    with pytest.raises(UserError, match="prompt compares images with their prompts"):
        score.require_prompts(False)
    with pytest.raises(UserError, match="prompt needs features=garments"):
        Score(bundled(), None, ["fid", "prompt"])
