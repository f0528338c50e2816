"""Prompts are understood as their captions were written."""

import csv

import pytest

from bdia_exp.metrics.garments import COLOUR_OF, NOTHING, asked_of
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
