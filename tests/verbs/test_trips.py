"""invert, roundtrip and edit on the bundled model: what comes back and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bdia_exp.cli.configs import call, settings
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.records import Record
from bdia_exp.verbs import verb
from tests.asking import one_sentence

pytestmark = pytest.mark.usefixtures("four_rows")

QUICK = ("nfe=4", "device=cpu", "sampler.gamma=0.9")


def do(command: str, *words: str) -> Record:
    (overrides,) = expand(command, words, multirun=False)
    return call(command, overrides)


@pytest.fixture(scope="module")
def tripped(source) -> tuple[Path, Record]:
    out = source.parent / "trip"
    return out, do("roundtrip", str(source), *QUICK, f"out={out}")


def test_a_round_trip_returns_the_pixels_and_says_by_how_much_errors_grow(source, tripped):
    out, record = tripped
    assert record["pixel_error"] == {"max": 0, "rms": 0}
    assert 0 < record["state_error"]["max"] < 1e-9
    assert record["amplification"]["predicted"] == pytest.approx(0.9**-3)
    assert 0.1 < record["amplification"]["measured"] / record["amplification"]["predicted"] < 10
    assert (record["nfe"], record["nfe_back"], record["steps"]) == (4, 3, 4)
    assert torch.equal(ImageSet(out).read(range(3)), ImageSet(source).read(range(3)))
    assert ImageSet(out).labels == ImageSet(source).labels
    assert json.loads((out / "record.json").read_text()) == json.loads(json.dumps(record))
    with Image.open(out / "strip.png") as strip:
        assert strip.getextrema() != (0, 0)
        assert strip.height > 3 * 64


def test_a_finished_round_trip_is_not_done_again(source, tripped, capsys):
    out, record = tripped
    before = (out / "strip.png").stat().st_mtime_ns
    assert do("roundtrip", str(source), *QUICK, f"out={out}") == json.loads(json.dumps(record))
    assert (out / "strip.png").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out


def test_a_finished_round_trip_loads_no_weights(source, tripped):
    (words,) = expand("roundtrip", (str(source), *QUICK, f"out={tripped[0]}"), multirun=False)
    asked = settings("roundtrip", words)

    def shape_only(device: str, dtype: str):
        assert device == "meta"
        return asked.model.make(device=device, dtype=dtype)

    model = Choice("fashion_mini", asked.model.config, shape_only)
    assert verb("roundtrip").function(replace(asked, model=model))["complete"]


def test_ddim_does_not_come_back(source, tmp_path, capsys):
    record = do("roundtrip", str(source), "sampler=ddim", "nfe=4", "device=cpu", f"out={tmp_path}")
    assert "too large" not in capsys.readouterr().out
    assert record["state_error"]["max"] > 0.01
    assert record["amplification"] is None


@pytest.mark.parametrize("sampler", ["edict", "cbdia", "rex", "leapfrog"])
def test_other_exact_samplers_come_back(source, tmp_path, sampler):
    words = (f"sampler={sampler}", "nfe=4", "device=cpu", f"out={tmp_path}", "limit=2")
    assert do("roundtrip", str(source), *words)["pixel_error"]["max"] <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fixed_point_returns_every_bit_from_a_file(source, tmp_path, dtype):
    words = (*QUICK, "state=fixed", f"dtype={dtype}")
    inverted = do("invert", str(source), *words, f"out={tmp_path / 'noise'}")
    assert inverted["side_information"]["wrapped"] == 0
    assert load_file(tmp_path / "noise" / "states.safetensors")["0.z.fixed"].dtype == torch.int64
    back = ("roundtrip", str(source), *words, f"states={tmp_path / 'noise'}")
    record = do(*back, f"out={tmp_path / 'back'}")
    assert record["state_error"] == {"max": 0, "rms": 0}
    assert record["amplification"]["same_bits"]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.quick
def test_one_step_of_fixed_point(source, tmp_path):
    words = ("nfe=1", "device=cpu", "state=fixed", "limit=1", f"out={tmp_path / 'x'}")
    assert do("roundtrip", str(source), *words)["state_error"]["max"] == 0


def test_a_small_gamma_amplifies_as_predicted(source, tmp_path, capsys):
    words = ("nfe=16", "device=cpu", "sampler.gamma=0.5", "limit=1", f"out={tmp_path / 'x'}")
    found = do("roundtrip", str(source), *words)["amplification"]
    assert "times as large as noise, too large to be edited" in capsys.readouterr().out
    assert found["predicted"] == 2**15
    assert 0.03 < found["measured"] / found["predicted"] < 30


def test_a_folder_of_other_files_is_left_alone(source, tmp_path):
    mine = tmp_path / "images" / "mine.png"
    mine.parent.mkdir()
    Image.new("L", (32, 32)).save(mine)
    with pytest.raises(UserError, match="holds other files"):
        do("roundtrip", str(source), *QUICK, f"out={tmp_path}")
    with pytest.raises(UserError, match="holds another experiment"):
        do("roundtrip", str(source), *QUICK, f"out={source}")
    assert mine.exists()
    assert len(ImageSet(source)) == 3


def test_a_run_that_was_stopped_is_done_again_in_its_folder(source, tmp_path, monkeypatch):
    out = tmp_path / "x"
    with monkeypatch.context() as patch:
        patch.setattr("bdia_exp.report.figures.side_by_side", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            do("roundtrip", str(source), *QUICK, f"out={out}")
    assert not json.loads((out / "record.json").read_text())["complete"]
    assert do("roundtrip", str(source), *QUICK, f"out={out}")["complete"]


def test_another_verb_in_the_same_folder_is_refused(source, tripped):
    out, _ = tripped
    with pytest.raises(UserError, match="command was roundtrip, now invert"):
        do("invert", str(source), *QUICK, f"out={out}")


@pytest.mark.quick
def test_states_of_another_inversion_are_refused(source, tmp_path):
    do("invert", str(source), *QUICK, f"out={tmp_path / 'noise'}")
    states = f"states={tmp_path / 'noise'}"
    with pytest.raises(UserError, match=r"strength was the default, now 0\.5"):
        do("roundtrip", str(source), *QUICK, "strength=0.5", states, f"out={tmp_path / 'x'}")
    assert not (tmp_path / "x").exists()
    (tmp_path / "noise" / "states.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="invert` again"):
        do("roundtrip", str(source), *QUICK, states, f"out={tmp_path / 'x'}")


@pytest.mark.quick
def test_an_edit_goes_back_as_another_class(source, tmp_path):
    words = (*QUICK, "to=8", "strength=0.75", "classify=true", f"out={tmp_path}")
    record = do("edit", str(source), *words)
    assert record["steps"] == 3
    assert record["pixel_error"]["max"] == 0
    assert record["edit_distance"]["rms"] > 1
    assert 0 <= record["classified_as_to"] <= 1
    assert ImageSet(tmp_path).labels == [8, 8, 8]


def test_an_edit_into_the_own_class_is_the_reconstruction(source, tmp_path):
    own = f"class={ImageSet(source).labels[0]}"
    words = (*QUICK, own, own.replace("class", "to"), "limit=1", f"out={tmp_path}")
    assert do("edit", str(source), *words)["edit_distance"]["max"] == 0


def test_batches_do_not_change_what_comes_back(source, tmp_path):
    whole = do("invert", str(source), *QUICK, f"out={tmp_path / 'a'}")
    parts = do("invert", str(source), *QUICK, "batch=2", f"out={tmp_path / 'b'}")
    assert whole["noise"] == parts["noise"]
    a, b = (load_file(tmp_path / name / "states.safetensors") for name in "ab")
    assert torch.equal(a["0.z"], torch.cat([b["0.z"], b["1.z"]]))


def test_any_picture_is_fitted_to_the_model(tmp_path):
    picture = Image.effect_noise((90, 60), 50).convert("RGB")
    picture.save(tmp_path / "photo.jpg")
    found = ImageSet(tmp_path / "photo.jpg", fit=(1, 32, 32))
    assert len(found) == 1
    assert found.read([0]).shape == (1, 1, 32, 32)
    record = do(
        "roundtrip", str(tmp_path / "photo.jpg"), *QUICK, "class=3", f"out={tmp_path / 'x'}"
    )
    assert record["images"] == 1


MISTAKES = {
    "roundtrip {} sampler=edm": "has no inverse: choose sampler=bdia_ddim",
    "roundtrip {} sampler=dpmpp_2m": "has no inverse",
    "roundtrip {} sampler=edict state=fixed nfe=4": "state=fixed is for sampler=bdia_ddim",
    "roundtrip {} sampler.gamma=0.123456 state=fixed nfe=4": "such as 0.123",
    "roundtrip {} sampler=edict nfe=5": "choose 4 or 6",
    "roundtrip {} sampler=edict sampler.p=0 nfe=4": "sampler.p=0 must be",
    "roundtrip {} sampler=cbdia sampler.gamma1=0.96 nfe=4": "must be 0 to 1 and different",
    "roundtrip {} sampler.gamma=2 nfe=4": "must be 0 to 1",
    "roundtrip {} state=float16": "did you mean 'float",
    "roundtrip {} strength=0 nfe=4": "strength=0 must be",
    "roundtrip {} strength=0.01 nfe=4": "leaves no step",
    "roundtrip {} limit=9 nfe=4": "limit=9 must be 1 to 3",
    "roundtrip {} states=/nothing nfe=4": "give the folder of a finished `bdia-exp invert`",
    "roundtrip {}/images/000000 nfe=4": "give class= for what they show",
    "roundtrip": "give images=",
    "roundtrip /nothing": "/nothing does not exist",
    "edit {} nfe=4": "give to=",
    "edit {} to=12 nfe=4": "to=12 is out of range",
    "edit {} to=3 class=-1 nfe=4": "class=-1 is out of range",
    "invert {} ddim_time=mine sampler=ddim": "ddim_time='mine' is unknown",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_get_one_sentence(words, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[words] in one_sentence(*(word.format(source) for word in words.split()))


def test_edits_of_other_steps_are_in_another_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("to=3", "methods=ddim", "limit=1", "device=cpu", "strength=1")
    for more in ("steps=2", "steps=3", "nfe=4", "steps=2"):
        do("edits", str(source), *words, more)
    found = [json.loads(file.read_text()) for file in Path("runs").glob("edits-*/edits.json")]
    assert sorted(made["ddim"]["nfe"] for made in found) == [2, 3, 4]


def test_edits_at_equal_evaluations_are_judged_by_the_classifier(source, tmp_path):
    words = ("to=3", "nfe=5", "strength=1", "settings=classify=true", "methods=ddim,edict,rex")
    found = do("edits", str(source), *words, "limit=1", "device=cpu", f"out={tmp_path}")
    # EDICT and Rex have two evaluations a step.
    assert {label: record["nfe"] for label, record in found.items()} == {
        "ddim": 5,
        "edict": 4,
        "rex": 4,
    }
    text = (tmp_path / "edits.md").read_text()
    assert "| class as asked |" in text
    share = found["ddim"]["classified_as_to"]
    assert f"| {share:.0%}".replace("%", " %") in text
    assert share in (0, 1)


def test_edits_refuse_a_method_without_an_inverse_before_the_first_run(source, tmp_path):
    words = ("to=3", "methods=ddim,edm", "limit=1", "device=cpu", f"out={tmp_path / 'out'}")
    with pytest.raises(UserError, match="methods: edm: this sampler has no inverse"):
        do("edits", str(source), *words)
    assert not (tmp_path / "out").exists()
