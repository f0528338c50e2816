"""Prompts that are longer than CLIP reads are cut, with one warning that says what is lost."""

import pytest
import torch
from PIL import Image

from bdia_exp.cli.configs import call
from bdia_exp.cli.words import expand

pytestmark = pytest.mark.usefixtures("stable_diffusion")

LONG, END = "cat " * 75, "red bus"


def do(command, *words):
    (overrides,) = expand(command, (*words, "model=tiny-sd", "device=cpu"), multirun=False)
    return call(command, overrides)


def warnings(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "CLIP reads" in line]


def test_of_a_file_of_captions_their_number_and_the_first_are_told(tmp_path, capsys):
    captions = tmp_path / "mine.txt"
    captions.write_text(f"a cat\n{LONG}{END}\n{LONG}end\n{LONG}\nthe last {LONG}\n")
    words = ("nfe=1", "sampler=ddim", "images=8", "batch=2", "save=none", "guidance=1")
    words += (f"prompts={captions}", "prompts_seed=null")
    record = do("sample", *words, f"out={tmp_path / 'run'}")
    (told,) = warnings(capsys)
    assert "CLIP reads 77 tokens of a prompt, and 3 of 5 have more and are cut: " in told
    assert f"the first, {LONG[:60]!r}…, without its end {END!r}" in told
    assert record["prompts_cut"] == 3
    record = do("sample", *words[:-2], "prompt=a cat", f"out={tmp_path / 'short'}")
    assert record["prompts_cut"] == 0
    assert not warnings(capsys)


@pytest.mark.parametrize(
    ("command", "given", "lost"),
    [
        ("invert", f"prompt={LONG}{END}", END),
        ("roundtrip", f"prompt={LONG}{END}", END),
        ("edit", "prompt=a cat", "a dog"),
    ],
)
def test_on_the_way_to_noise_and_back(command, given, lost, tmp_path, capsys):
    pixels = torch.arange(64 * 64).reshape(64, 64).remainder(256).byte().numpy()
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "picture.png")
    more = [f"to={LONG}a dog"] if command == "edit" else []
    words = ("nfe=2", "guidance=1", f"out={tmp_path / 'run'}")
    record = do(command, str(tmp_path / "picture.png"), given, *more, *words)
    (told,) = warnings(capsys)
    assert f"and 1 of {1 + len(more)} have more" in told
    assert f"without its end {lost!r}" in told
    assert record["prompts_cut"] == 1
