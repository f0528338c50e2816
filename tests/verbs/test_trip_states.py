"""Kept states of `invert`: a damaged or foreign folder is one sentence, for every sampler."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bdia_exp.cli.configs import call
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.store.records import Record
from tests.verbs.running import pngs

pytestmark = pytest.mark.usefixtures("four_rows")

KINDS = {
    "bdia": ("sampler.gamma=0.9",),
    "fixed": ("sampler.gamma=0.9", "state=fixed"),
    "edict": ("sampler=edict",),
    "rex": ("sampler=rex", "sampler.predicts=data", "sampler.sde=em", "nfe=4"),
    "ddim": ("sampler=ddim",),
}


@pytest.fixture(scope="module")
def kept(source) -> dict[str, Path]:
    """A finished `invert` of each kind, in two batches."""
    for kind, words in KINDS.items():
        do("invert", source, *words, f"out={source.parent / kind}")
    return {kind: source.parent / kind for kind in KINDS}


def do(command: str, source: Path, *words: str) -> Record:
    words = (str(source), "nfe=2", "device=cpu", "batch=2", *words)
    (overrides,) = expand(command, words, multirun=False)
    return call(command, overrides)


def back(source: Path, kind: str, states: Path, out: Path) -> Record:
    return do("roundtrip", source, *KINDS[kind], f"states={states}", f"out={out}")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_states_are_decoded_also_those_of_older_records(source, kept, tmp_path, kind):
    shutil.copytree(kept[kind], tmp_path / "kept")
    direct = do("roundtrip", source, *KINDS[kind], f"out={tmp_path / 'direct'}")
    new = back(source, kind, tmp_path / "kept", tmp_path / "new")
    change_record(tmp_path / "kept", states_sha256=None)
    old = back(source, kind, tmp_path / "kept", tmp_path / "old")
    for key in ("noise", "state_error", "pixel_error", "amplification"):
        assert new[key] == old[key] == direct[key]
    assert pngs(tmp_path / "new") == pngs(tmp_path / "old") == pngs(tmp_path / "direct") != {}


def change_record(folder: Path, **changes) -> None:
    record = json.loads((folder / "record.json").read_text()) | changes
    record = {key: value for key, value in record.items() if value is not None}
    (folder / "record.json").write_text(json.dumps(record))


RECORDS = {
    "no identity": {"identity": None},
    "identity of another type": {"identity": [1]},
    "no nfe": {"nfe": None},
    "nfe of another type": {"nfe": "4"},
    "nfe below 1": {"nfe": -4},
}


@pytest.mark.parametrize("what", RECORDS)
def test_records_that_lack_something(source, kept, tmp_path, what):
    shutil.copytree(kept["bdia"], tmp_path / "kept")
    change_record(tmp_path / "kept", **RECORDS[what])
    with pytest.raises(UserError, match=r"lacks nfe: invert|cannot be \[1\]|it has no identity"):
        back(source, "bdia", tmp_path / "kept", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_hidden_colours_do_not_decide_and_it_is_said(tmp_path, capsys):
    found = []
    for hidden in (0, 255):
        (tmp_path / f"{hidden}").mkdir()
        Image.new("LA", (32, 32), (hidden, 0)).save(tmp_path / f"{hidden}/a.png")
        words = ("class=1", f"out={tmp_path / f'out{hidden}'}")
        found.append(do("invert", tmp_path / f"{hidden}", *words)["noise"])
        assert "1 images have transparent parts: they were put on white" in capsys.readouterr().out
    assert found[0] == found[1]


def without(name):
    return lambda flat: flat.pop(name)


def instead(name, change):
    return lambda flat: flat.update({name: change(flat[name])})


STATES = {
    "one bit of a state": ("bdia", instead("0.z", lambda z: z + 1e-9)),
    "no state": ("bdia", without("0.z")),
    "no past": ("bdia", without("1.past")),
    "no second state": ("edict", without("0.y")),
    "a batch less": ("ddim", without("1.z")),
    "no number": ("ddim", lambda flat: flat.update({"z": flat["0.z"].clone()})),
    "a batch more": ("ddim", lambda flat: flat.update({"7.z": flat["0.z"].clone()})),
    "an image less": ("bdia", instead("0.z", lambda z: z[:1].clone())),
    "another shape": ("bdia", instead("0.past", lambda z: z[..., :16].clone())),
    "another type": ("bdia", instead("0.z", lambda z: z.float())),
    "NaN": ("edict", instead("0.y", lambda z: z * torch.nan)),
    "no log": ("fixed", without("0.log")),
    "a short log": ("fixed", instead("0.log", lambda log: log[:2].clone())),
    "no steps": ("fixed", without("1.steps")),
    "steps of zeros": ("fixed", instead("0.steps", torch.zeros_like)),
    "a step less": ("fixed", instead("0.steps", lambda steps: steps[1:].clone())),
    "another buffer": ("fixed", instead("0.buffer", lambda digits: digits.new_zeros(7))),
    "floats for fixed point": ("fixed", instead("0.z.fixed", lambda z: z.double())),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("what", STATES)
def test_states_that_are_not_those_that_were_kept(source, kept, tmp_path, what, old):
    """By their hash; in an older record, which has none, by their names, shapes and types."""
    if old and what == "one bit of a state":
        pytest.skip("older records have no hash")
    kind, change = STATES[what]
    shutil.copytree(kept[kind], tmp_path / "kept")
    if old:
        change_record(tmp_path / "kept", states_sha256=None)
    flat = load_file(tmp_path / "kept/states.safetensors")
    change(flat)
    save_file(flat, tmp_path / "kept/states.safetensors")
    told = r"states.safetensors cannot be read \(.+\): remove that folder and run `bdia-exp invert`"
    with pytest.raises(UserError, match=told):
        back(source, kind, tmp_path / "kept", tmp_path / "x")
    assert not (tmp_path / "x").exists()
