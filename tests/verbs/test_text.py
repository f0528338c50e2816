"""Text to image from captions to a table, and from an image to its edits, on the tiny model."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bdia_exp.cli.configs import call, settings
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.metrics.moments import Statistics
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.records import Record

ROOT = Path(__file__).parents[2]
TINY = ("model=tiny-sd", "device=cpu")
FEATURES = ("features=inception_pytorch", "features.dim=64", "device=cpu")


def do(command: str, *words: str) -> Record:
    (overrides,) = expand(command, words, multirun=False)
    return call(command, overrides)


# --- sample ---


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("captioned")
    words = ("nfe=3", "images=3", "batch=2", "prompts=bundled:captions.csv")
    return out, do("sample", *TINY, *words, f"out={out}")


def test_a_run_says_what_it_asked_for(captioned, capsys):
    out, record = captioned
    assert (record["nfe"], record["rows_per_evaluation"], record["guidance"]) == (3, 2, 9.0)
    assert record["prompts"]["source"] == "captions.csv"
    assert record["prompts"]["seed"] == 0
    assert len(record["prompts"]["sequence_sha256"]) == 64
    rows = list(csv.DictReader((out / "prompts.csv").open(encoding="utf-8")))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert len({row["prompt"] for row in rows}) == 3
    assert not (out / "images" / "dataset.json").exists(), "there are no classes"
    assert {"guidance", "prompts_sha256"} < record["identity"].keys()


def test_an_image_depends_on_its_seed_and_prompt_alone(captioned, tmp_path):
    out, _ = captioned
    rows = list(csv.DictReader((out / "prompts.csv").open(encoding="utf-8")))
    alone = f"prompt={rows[2]['prompt']}"
    do("sample", *TINY, "nfe=3", "seeds=2", alone, f"out={tmp_path / 'alone'}")
    do("sample", *TINY, "nfe=3", "seeds=2", "prompt=another", f"out={tmp_path / 'other'}")
    (of_many,) = ImageSet(out).read([2])
    (same,), (other,) = (ImageSet(tmp_path / name).read([0]) for name in ("alone", "other"))
    assert torch.equal(of_many, same)
    assert not torch.equal(same, other)


def test_two_processes_make_the_images_of_one(captioned, tmp_path):
    out, _ = captioned
    words = ["nfe=3", "images=3", "batch=2", "prompts=bundled:captions.csv", f"out={tmp_path}"]
    command = [sys.executable, "-m", "bdia_exp", "sample", *TINY, *words, "-p", "2"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert torch.equal(ImageSet(tmp_path).read(range(3)), ImageSet(out).read(range(3)))


def test_guidance_matters_and_a_changed_caption_file_is_noticed(tmp_path):
    captions = tmp_path / "mine.txt"
    captions.write_text("a cat\na dog\n")
    words = ("nfe=2", "images=2", f"prompts={captions}")
    for guidance in ("1", "9"):
        record = do("sample", *TINY, *words, f"guidance={guidance}", f"out={tmp_path / guidance}")
        assert record["rows_per_evaluation"] == (1 if guidance == "1" else 2)
    one, nine = (ImageSet(tmp_path / name).read(range(2)) for name in ("1", "9"))
    assert not torch.equal(one, nine)
    captions.write_text("a cat\na bird\n")
    with pytest.raises(UserError, match=r"holds another experiment \(prompts_sha256"):
        do("sample", *TINY, *words, "guidance=9", f"out={tmp_path / '9'}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prompts=null",), 'give prompt="what the images show", or prompts=FILE'),
        (("prompts=not/here.csv",), "nothing is at not/here.csv"),
        (("guidance=-1",), "guidance=-1 must be 0 or more"),
        (("class=3",), "class=3: this model has no classes"),
        (("control=picture.png",), "a ControlNet and its image go together"),
        (("condition=tiny-controlnet",), "a ControlNet and its image go together"),
        (("condition=tiny-controlnet", "control=not.png"), "not.png does not exist"),
        (("model=fashion_mini", "prompt=a shoe"), "prompt=: this model takes no text"),
        (("model=fashion_mini", "prompts=x.csv"), "prompts=: this model takes no text"),
        (
            ("model=fashion_mini", "prompts=null", "guidance=7"),
            "guidance=7: guidance needs a model of texts, or one that was trained with and without",
        ),
        (("model=fashion_mini", "condition=controlnet", "control=x.png"), "model.c"),
        (("model.checkpoint=random:seven",), "give a seed, such as random:0"),
        (("model=sd",), "give model.checkpoint="),
    ],
)
def test_what_does_not_go_together_is_said(words, message, tmp_path):
    model = () if any(word.startswith("model=") for word in words) else TINY
    with pytest.raises(UserError, match=message):
        do("sample", *model, "nfe=3", "images=1", *words, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


# --- table 1 ---


def test_table_1_from_captions_to_the_table(tmp_path, capsys):
    """Table 1 on the tiny model, against its own images of other seeds."""
    root, fine, reference = (tmp_path / name for name in ("table", "fine", "reference.npz"))
    do("sample", *TINY, "sampler=ddim", "nfe=2", "seeds=1000-1069", f"out={fine}")
    do("reference", str(fine), *FEATURES, "resize=32", f"out={reference}")
    more = "model=tiny-sd guidance=1 prompts=bundled:captions.csv "  # guidance has its own tests
    words = ("reproduce", "table1", "limit=66", f"out={root}", "device=cpu")
    do(*words, f"overrides={more} reference={reference}")
    drawn = json.loads((root / "tables.json").read_text())
    (table,) = drawn["tables"]
    assert [cell["row"] for cell in table["cells"]] == table["rows"]
    assert len(table["rows"]) == 3
    for cell in table["cells"]:
        assert cell["nfe"] == 10
        assert cell["images"] == 66
        assert cell["fid"] > 0
        assert cell["published"] is None, "it is another model's"
    assert len({cell["fid"] for cell in table["cells"]}) == 3
    text = (root / "tables.md").read_text()
    assert "made with model=tiny-sd, not sd21_base" in text
    assert "images resized to 32 pixels" in text
    records = [json.loads(file.read_text()) for file in sorted(root.glob("cells/*/record.json"))]
    assert len({record["prompts"]["sequence_sha256"] for record in records}) == 1
    assert len({record["identity"]["seeds"] for record in records}) == 1
    prompts = [file.read_text() for file in sorted(root.glob("cells/*/prompts.csv"))]
    assert len(prompts) == 3
    assert len(set(prompts)) == 1
    meta = Statistics.load(reference).meta
    assert meta is not None
    assert meta["resize"] == 32
    with Image.open(root / "samples.png") as sheet:
        assert sheet.width > 16 * 64

    # It is not done again.
    stamps = [file.stat().st_mtime_ns for file in sorted(root.glob("cells/*/record.json"))]
    do(*words, f"overrides={more} reference={reference}")
    assert "3 of 3 runs are there" in capsys.readouterr().out
    assert stamps == [f.stat().st_mtime_ns for f in sorted(root.glob("cells/*/record.json"))]


def test_the_plan_of_the_real_table_needs_no_weights(capsys):
    do("reproduce", "table1", "dry_run=true", "tflops=30")  # whatever was measured here
    out = capsys.readouterr().out
    assert "3 cells of 20,000 images" in out
    assert "U-Net 866 M, autoencoder 84 M, text encoder 340 M" in out
    assert "GPU hours: sampling 8.9, decoding 1.4" in out
    for file in ("v2-1_512-ema-pruned.ckpt", "annotations_trainval2014.zip", "val2014-256.npz"):
        assert file in out
    with pytest.raises(UserError, match=r"sampler of .* cannot be changed"):
        do("reproduce", "table1", "dry_run=true", "overrides=sampler=ddim")


# --- editing ---


@pytest.fixture(scope="module")
def picture(captioned, tmp_path_factory) -> Path:
    """A photograph of another shape than the model's."""
    image = ImageSet(captioned[0]).read([0])[0]
    file = tmp_path_factory.mktemp("picture") / "photo.png"
    wide = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((150, 90))
    wide.save(file)
    return file


EDIT = (*TINY, "prompt=a cat", "nfe=10", "strength=0.8")


@pytest.mark.parametrize(
    ("sampler", "exact"),
    [
        ("sampler.gamma=1", True),
        ("sampler.gamma=0.92", True),
        ("sampler=edict", True),
        ("sampler=ddim", False),
    ],
)
def test_an_edit_by_prompt(sampler, exact, picture, tmp_path, capsys):
    record = do(
        "edit", f"image={picture}", *EDIT, sampler, "to=a dog, and a bird", f"out={tmp_path}"
    )
    steps = 4 if sampler == "sampler=edict" else 8
    assert record["steps"] == steps
    assert record["nfe"] == 8
    assert record["nfe_back"] == {"sampler=edict": 8, "sampler=ddim": 8}.get(sampler, 7)
    assert (record["inversion_error"]["rms"] == 0) is exact
    assert record["pixel_error"] == record["autoencoder_error"] or not exact
    assert record["edit_distance"]["rms"] > 1
    out = capsys.readouterr().out
    assert "each of two rows: guidance" in out
    assert "the autoencoder alone" in out
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.height > 4 * 64


def test_a_round_trip_of_text_with_every_bit(picture, tmp_path):
    record = do("roundtrip", str(picture), *EDIT, "state=fixed", f"out={tmp_path}")
    assert record["state_error"]["max"] == 0
    assert record["amplification"]["same_bits"]


def test_another_prompt_is_another_experiment(picture, tmp_path):
    do("invert", str(picture), *EDIT, f"out={tmp_path / 'noise'}")
    states = f"states={tmp_path / 'noise'}"
    do("edit", str(picture), *EDIT, "to=a dog", states, f"out={tmp_path / 'edit'}")
    with pytest.raises(UserError, match="prompt was a cat, now a bird"):
        do(
            "edit",
            str(picture),
            *TINY,
            *EDIT[-2:],
            "prompt=a bird",
            "to=a dog",
            states,
            f"out={tmp_path / 'x'}",
        )
    with pytest.raises(UserError, match='give prompt="…" for what the images show'):
        do("edit", str(picture), *TINY, "to=a dog")
    for verb, more in (("edit", ["to=2"]), ("roundtrip", []), ("invert", [])):
        with pytest.raises(UserError, match="guidance=2: guidance needs a model of texts, or one"):
            do(verb, str(picture), "class=1", "guidance=2", *more)
    with pytest.raises(UserError, match="to=a dog: this model takes no text"):
        do("edit", str(picture), "class=1", "to=a dog")


@pytest.mark.quick
def test_edits_by_several_methods_on_one_sheet(picture, tmp_path, capsys):
    words = ("prompt=a cat's eye", "to=a dog", "settings=model=tiny-sd", "steps=5", "strength=0.8")
    methods = "methods=ddim,edict,bdia_ddim sampler.gamma=0.92"
    records = do("edits", f"image={picture}", *words, methods, f"out={tmp_path}", "device=cpu")
    spent = {label: record["nfe"] + record["nfe_back"] for label, record in records.items()}
    assert spent == {"ddim": 8, "edict": 16, "bdia_ddim sampler.gamma=0.92": 7}
    assert {record["steps"] for record in records.values()} == {4}
    text = (tmp_path / "edits.md").read_text()
    assert "# Edits from \"a cat's eye\" to 'a dog'" in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 2 + 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 4 * 128
    capsys.readouterr()
    do("edits", f"image={picture}", *words, methods, f"out={tmp_path}", "device=cpu")
    assert capsys.readouterr().out.count("nothing to do") == 3


def test_edits_in_a_folder_that_was_moved_are_drawn_again(picture, tmp_path):
    words = ("prompt=a cat", "to=a dog", "settings=model=tiny-sd", "steps=2", "methods=ddim")
    out, moved = tmp_path / "out", tmp_path / "moved"
    do("edits", f"image={picture}", *words, f"out={out}", "device=cpu")
    sheet = (out / "sheet.png").read_bytes()
    out.rename(moved)
    (moved / "sheet.png").unlink()
    do("edits", f"image={picture}", *words, f"out={moved}", "device=cpu")
    assert (moved / "sheet.png").read_bytes() == sheet
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("settings=model=tiny-sd out=x",), "settings: out= is a key of edits"),
        (("settings=model=tiny-sd prompt='x",), "cannot be split"),
        (("settings=model=tiny-sd", "guidance=-1"), "guidance=-1 must be 0 or more"),
        (("settings=model=tiny-sd", "methods=bdia_ddim_hat"), "this sampler has no inverse"),
    ],
)
def test_edits_that_cannot_be_are_said(words, message, picture, tmp_path):
    with pytest.raises(UserError, match=message):
        do("edits", f"image={picture}", "prompt=a", "to=b", "steps=5", *words, f"out={tmp_path}")


# --- what was made from other files is made again ---


def test_a_table_of_changed_captions_is_not_the_old_one(tmp_path):
    captions, reference = tmp_path / "mine.txt", tmp_path / "reference.npz"
    captions.write_text("a cat\na dog\n")
    made = f"prompts={captions}"
    do("sample", *TINY, "nfe=1", "images=66", "batch=33", made, f"out={tmp_path / 'other'}")
    do("reference", str(tmp_path / "other"), *FEATURES, "resize=32", f"out={reference}")
    capture = ("cells=table1: DDIM", "limit=66", f"out={tmp_path / 'table'}", "device=cpu")
    more = f"overrides=model=tiny-sd guidance=1 {made} reference={reference}"
    drawn = do("reproduce", "table1", *capture, more)
    assert "**only 2 captions**" in (tmp_path / "table" / "tables.md").read_text()
    captions.write_text("a horse\na house\n")
    with pytest.raises(UserError, match=r"holds another experiment \(prompts_sha256"):
        do("reproduce", "table1", *capture, more)
    captions.write_text("a cat\na dog\n")
    assert do("reproduce", "table1", *capture, more) == drawn


def test_another_controlnet_at_the_same_place_is_another_experiment(tmp_path):
    words = ["model=tiny-sd", "condition=tiny-controlnet", "prompt=x"]
    for seed in (0, 1):
        control = [*words, f"model.control.checkpoint=random:{seed}"]
        model = settings("sample", control).model.make(device="cpu", dtype="auto")
        model.parts["controlnet"].save_pretrained(tmp_path / f"net-{seed}")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    (tmp_path / "net-0").rename(tmp_path / "net")
    given = ("condition=tiny-controlnet", f"model.control.checkpoint={tmp_path / 'net'}")
    given += (f"control={tmp_path / 'white.png'}", "prompt=x", "nfe=1", "images=1")
    do("sample", *TINY, *given, f"out={tmp_path / 'run'}")
    (tmp_path / "net").rename(tmp_path / "old")
    (tmp_path / "net-1").rename(tmp_path / "net")
    with pytest.raises(UserError, match=r"holds another experiment \(control_network was"):
        do("sample", *TINY, *given, f"out={tmp_path / 'run'}")


def test_captions_that_are_not_used_decide_nothing(tmp_path):
    words = ("nfe=1", "images=1", "prompt=x", f"out={tmp_path}")
    first = do("sample", *TINY, *words)
    assert do("sample", *TINY, *words, "prompts_seed=3")["identity"] == first["identity"]
