"""Texts on their way through the shell and Hydra's grammar: nothing of them is changed."""

import pytest

from bdia_exp.cli.configs import settings
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.overrides import listed, quoted, split


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "it's",
        "'quoted' and more",
        '"hi" he said',
        "a\\b",
        "end\\",
        "a\\'b",
        "{a} [b] (c)",
        "costs ${x} now",
        "x=1, y=2",
        "2024",
        "true",
        "ein Käfer – 甲虫",
        "",
    ],
)
def test_a_prompt_arrives_as_it_was_typed(text):
    (words,) = expand("sample", ("model=tiny-sd", f"prompt={text}"), multirun=False)
    assert settings("sample", words).prompt == text
    again = ["model=tiny-sd", f"prompt={quoted(text)}"]
    assert settings("sample", again).prompt == text


def test_a_class_stays_a_number_and_null_is_nothing():
    (words,) = expand("edit", ("images=x.png", "to=7", "prompt=null"), multirun=False)
    asked = settings("edit", words)
    assert (asked.to, asked.prompt) == (7, None)


def test_what_is_not_closed_or_given_twice_is_said():
    with pytest.raises(UserError, match=r"settings=.* close its quot"):
        split("settings", "model=x prompt='y")
    assert split("overrides", None) == []
    with pytest.raises(UserError, match="overrides= is given twice: give all of them in one text"):
        expand("reproduce", ("demo", "overrides=a=1", "overrides=b=2"), multirun=False)
    (words,) = expand("sample", ("nfe=9", "nfe=11"), multirun=False)
    assert settings("sample", words).nfe == 11


def test_names_may_have_spaces_around_them():
    assert listed("fid, isc ,,") == listed(["fid", "isc"]) == ["fid", "isc"]
    assert listed(None) == listed("") == []
