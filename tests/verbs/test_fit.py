"""`fit`, and runs that use its file: found, checked, made when needed, part of the identity."""

import json
from itertools import pairwise

import pytest
import torch

from bdia_exp import dist
from bdia_exp.cli.configs import call, settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.coefficients import Coefficients
from bdia_exp.jobs.fits import fitting
from bdia_exp.jobs.fits.noises import Batch
from bdia_exp.jobs.fits.options import FitOptions
from bdia_exp.jobs.sampling import Job
from bdia_exp.samplers.schedules import edm
from bdia_exp.store import records
from bdia_exp.verbs.fit import _identity as fitting_identity
from tests.asking import one_sentence
from tests.verbs.running import pngs, sample

FEW = ["fit.images=3", "fit.held_out=2", "fit.fine=12", "device=cpu", "batch=2"]
BDIA = ["sampler=bdia_ddim", "grid=karras", "nfe=5"]
IIA = ["sampler=iia_edm", "nfe=5"]
pytestmark = pytest.mark.usefixtures("four_rows")


def fit(out, *words):
    return call("fit", [*FEW, *words, f"out={out}"])


@pytest.fixture(scope="module")
def fitted(four_rows, tmp_path_factory):
    """γ of BDIA-DDIM at NFE 5."""
    root = tmp_path_factory.mktemp("fit")
    return root, fit(root, *BDIA, "fit.within=[0.05,2]")


@pytest.mark.quick
def test_a_fit_writes_its_coefficients_and_their_errors(fitted):
    root, record = fitted
    found = json.loads((root / "coefficients.json").read_text())
    rows = found["coefficients"]
    assert [len(row) for row in rows] == [0, 1, 1, 1, 1]
    assert all(0.05 <= row[0] <= 2 for row in rows[1:])
    assert found["for"]["levels"][-1] == [1, 0, 0]
    assert len(found["for"]["checkpoint"]) == 64
    # 12 of the fine solution, 5 of the fit
    assert found["fit"]["evaluations_per_noise"] == 17
    assert found["fit"]["seeds"] == "3000000000-3000000002"
    assert found["fit"]["held_out_seeds"] == "3000000003-3000000004"
    ends = found["end_errors"]["batch"]
    assert ends["fitted"]["rms"] < ends["base"]["rms"]
    assert record["commit"]
    text = (root / "fit.md").read_text()
    assert "| γ |" in text
    assert "sampling makes 5, as without a fit" in text
    assert (root / "fit.png").stat().st_size > 10_000


def test_a_run_uses_them_and_its_identity_has_their_hash(fitted, tmp_path):
    root, _ = fitted
    file = root / "coefficients.json"
    record = sample(tmp_path / "a", *BDIA, "images=2", f"sampler.gamma={file}")
    assert record["nfe"] == 5
    assert len(record["identity"]["coefficients_sha256"]) == 64
    assert str(file) not in json.dumps(record["identity"])
    gammas = [row[0] for row in json.loads(file.read_text())["coefficients"][1:]]
    sample(tmp_path / "b", *BDIA, "images=2", f"sampler.gamma={gammas}")
    assert pngs(tmp_path / "a") == pngs(tmp_path / "b")
    sample(tmp_path / "c", *BDIA, "images=2", "sampler.gamma=obelm")
    assert pngs(tmp_path / "a") != pngs(tmp_path / "c")
    other = tmp_path / "other.json"
    other.write_text(file.read_text().replace('"fine": 12', '"fine": 13'))
    with pytest.raises(UserError, match="coefficients_sha256 was"):
        sample(tmp_path / "a", *BDIA, "images=2", f"sampler.gamma={other}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nfe=6"], r"other levels \(5 steps; this grid has 6 steps\)"),
        (["grid.rho=6"], r"other levels \(5 steps; this grid has 5 steps\)"),
        (["sampler=bdia_ipndm", "grid=karras"], "another sampler"),
        (["model.checkpoint=random:1"], "another checkpoint"),
    ],
)
def test_coefficients_of_anything_else_are_refused(fitted, tmp_path, words, message):
    file = fitted[0] / "coefficients.json"
    if words[0].startswith("model"):
        words = [f"model.checkpoint={_other_weights(tmp_path)}"]
    with pytest.raises(UserError, match=message):
        sample(tmp_path / "x", *BDIA, "images=1", f"sampler.gamma={file}", *words)


def _other_weights(root):
    """A copy of the bundled checkpoint with one number changed, and its JSON."""
    from safetensors.torch import load_file, save_file

    from bdia_exp.sources import checkpoints

    path = checkpoints.locate("bundled:fashion_mini.safetensors")
    state = load_file(path)
    name = sorted(state)[0]
    state[name] = state[name] + 1
    save_file(state, root / "other.safetensors")
    (root / "other.json").write_text(path.with_suffix(".json").read_text())
    return root / "other.safetensors"


def test_auto_fits_once_and_keeps_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    small = FitOptions(images=2, fine=8)
    monkeypatch.setattr(fitting, "usual", lambda sampler: small)
    words = [*IIA, "images=2"]
    record = sample(tmp_path / "a", *words)
    assert "fitting the coefficients of iia_edm at nfe=5" in capsys.readouterr().out
    (file,) = (tmp_path / "cache" / "coefficients").iterdir()
    assert file.name.startswith("fashion_mini-iia_edm-nfe5-")
    assert record["config"]["sampler"]["coefficients"] == "auto"
    sample(tmp_path / "b", *words, f"sampler.coefficients={file}")
    assert "fitting" not in capsys.readouterr().out
    assert pngs(tmp_path / "a") == pngs(tmp_path / "b")
    file.unlink()  # the run has a copy
    kept = tmp_path / "a" / "coefficients.json"
    sample(tmp_path / "a", *words, f"sampler.coefficients={kept}")
    assert "is complete: nothing to do" in capsys.readouterr().out
    base = sample(tmp_path / "c", *words, "sampler.coefficients=null")
    assert "coefficients_sha256" not in base["identity"]
    sample(tmp_path / "d", "sampler=edm", "nfe=5", "images=2")
    assert pngs(tmp_path / "c") == pngs(tmp_path / "d") != pngs(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"coefficients": [["x"]], "for": {}}'])
def test_a_damaged_file_of_auto_is_made_again(tmp_path, monkeypatch, text):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "usual", lambda sampler: FitOptions(images=2, fine=8))
    words = [*IIA, "images=2", "model=toy"]
    first = sample(tmp_path / "a", *words)
    (file,) = (tmp_path / "cache" / "coefficients").iterdir()
    file.write_text(text)
    assert sample(tmp_path / "b", *words)["identity"] == first["identity"]


def test_auto_is_fitted_for_all_classes(tmp_path, monkeypatch):
    """Whatever run comes first: its file is for the others, too."""
    small = FitOptions(images=2, fine=8)
    monkeypatch.setattr(fitting, "usual", lambda sampler: small)
    found = []
    for first in (["class=3"], []):
        monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / f"cache{len(found)}"))
        sample(tmp_path / f"run{len(found)}", *IIA, "images=1", *first)
        (file,) = (tmp_path / f"cache{len(found)}" / "coefficients").iterdir()
        found.append((file.name, file.read_bytes()))
    assert found[0] == found[1]


TEXT = ["model=mini_sd", "images=bundled:fashion_edits.zip", "sampler.gamma=auto", "device=cpu"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("edit", ["pairs=bundled:fashion_edits_colour.csv"], "with `bdia-exp fit`, and give the"),
        ("invert", ['prompt="a red dress"'], "with `bdia-exp fit`, and give the file"),
        ("invert", [], "prompt="),
    ],
)
def test_auto_is_not_fitted_for_the_texts_of_a_trip(tmp_path, monkeypatch, command, words, message):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert message in one_sentence(command, *TEXT, "nfe=3", *words)


def test_another_file_of_the_reference_is_another_fit(tmp_path, monkeypatch):
    """Also one of the same name."""
    monkeypatch.setattr(fitting, "made", lambda *_: pytest.fail("it is fitted"))
    file, out = tmp_path / "reference.npz", tmp_path / "x"
    words = [*FEW, *BDIA, "model=toy", "fit.target=features", f"reference={file}", f"out={out}"]
    file.write_text("old")
    identity = fitting_identity(settings("fit", words))
    records.save(out / "record.json", {"complete": True, "identity": identity, "config": {}})
    file.write_text("of other images")
    with pytest.raises(UserError, match=r"another experiment.*reference was"):
        call("fit", words)


def test_a_search_for_features_is_judged_by_the_images(tmp_path):
    few = ["fit.target=features", "fit.judged=66", "fit.trials=2"]
    found = fit(tmp_path / "x", *BDIA, "nfe=3", "batch=66", *few)["search"]
    assert found["trials"] == 2
    assert found["features"] == "fashion_features"
    assert found["seeds"] == "3000000005-3000000070"  # after those of the fit
    assert found["held_out_seeds"] == "3000000071-3000000136"
    fid = found["fid"]
    assert fid["found"] <= fid["least_squares"]
    assert "The search tried 2 sets" in (tmp_path / "x/fit.md").read_text()
    # The same images by `sample` have the same FID.
    words = [*BDIA, "nfe=3", f"sampler.gamma={tmp_path / 'x/coefficients.json'}", "score=true"]
    record = sample(tmp_path / "y", *words, f"seeds={found['held_out_seeds']}", "save=none")
    assert record["score"]["fid"] == pytest.approx(found["held_out_fid"]["found"], abs=1e-4)
    # "No coefficients" is DDIM, although the bounds of a γ exclude 0.
    words = ["sampler=ddim", *BDIA[1:], "nfe=3", "score=true", f"seeds={found['seeds']}"]
    base = sample(tmp_path / "z", *words, "save=none")
    assert base["score"]["fid"] == pytest.approx(fid["base"], abs=1e-4)


@pytest.mark.parametrize("state", ["float64", "fixed"])
def test_a_trip_with_a_gamma_a_step_is_exact(fitted, source, tmp_path, state):
    file = fitted[0] / "coefficients.json"
    words = [*BDIA, f"sampler.gamma={file}", f"state={state}", "device=cpu", "limit=1"]
    words.append(f"images={source}")
    record = call("roundtrip", [*words, f"out={tmp_path / 'x'}"])
    gammas = [row[0] for row in json.loads(file.read_text())["coefficients"][1:]]
    growth = 1 / torch.tensor(gammas, dtype=torch.float64).prod().item()
    assert record["amplification"]["predicted"] == pytest.approx(growth)
    assert record["state_error"]["max"] <= (0 if state == "fixed" else 1e-5)
    part = call("invert", [*words, "strength=0.6", f"out={tmp_path / 'y'}"])
    assert part["steps"] == 3


@pytest.mark.quick
def test_a_batch_is_evaluated_in_parts(four_rows):
    job = Job.of(settings("sample", ["sampler=ddim", "grid=karras", "nfe=2"]), "cpu")
    batch = Batch.of(job, range(5), 2)
    whole = Batch.of(job, range(5), 5)
    assert len(batch.denoisers) == 2  # padded to four_rows
    one, other = (each(batch.z, edm(2.0)) for each in (batch, whole))
    assert torch.allclose(one.eps, other.eps, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no coefficients"),
        ('{"coefficients": [[1]]}', "holds no coefficients"),
        ('{"coefficients": [["x"]], "for": {}}', "not a finite number"),
        ('{"coefficients": [[NaN]], "for": {}}', "holds no coefficients"),
        ('{"coefficients": 3, "for": {}}', "holds no coefficients"),
        ('{"coefficients": [[1]], "for": {"levels": 3}}', "holds no coefficients"),
        ('{"coefficients": [[1]], "for": {}}', "another checkpoint"),
        (
            '{"coefficients": [[1]], "for": {"checkpoint": "abc", "guidance": 2}}',
            "guidance .2, not",
        ),
        ('{"coefficients": [[1' + "0" * 400 + ']], "for": {}}', "holds no coefficients"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Coefficients.read(str(tmp_path / "c.json")).require({"checkpoint": "abc", "levels": []})


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler=cbdia"], "this sampler has no coefficients"),
        (["fit.target=x"], "fit.target='x' is unknown"),
        (["fit.images=0"], "fit.images=0"),
        (["fit.images=abc"], "fit.images=abc must be a whole number or null"),
        (["fit.target=local", "fit.parts=1"], "fit.parts=1 is the step itself"),
        (["fit.fine=1.5"], "fit.fine=1.5 must be a whole number"),
        (["fit.within=3"], "fit.within=3 must be a list or null"),
        (["+fit.foo=1"], "there is no key 'fit.foo'"),
        (["fit=3"], "fit"),
        (["fit.within=[1]"], "must be two numbers"),
        (["fit.first_seed=-1"], "fit.first_seed=-1"),
        (["class=99"], "class=99 is out of range: this model has classes 0 to 9"),
        (["model=mini_sd", "class=3"], "this model has no classes"),
        (["sampler=iia_spndm", "grid=karras", "nfe=2"], "nfe=2: no step of this sampler has"),
        (["sampler=bdia_ddim", "grid=karras", "nfe=1"], "give a larger nfe="),
        (["sampler=biia_edm", "sampler.columns.r=-1"], "sampler.columns.r=-1 must be 0 or more"),
        (["sampler.columns.r=-1"], "sampler.columns.r=-1 must be 0 or more"),
        (["sampler=ab_fitted", "sampler.columns.count=0"], "sampler.columns.count=0 must be 1"),
        (["fit.first_seed=4294967295"], "the seeds of this fit end at 4294967694"),
        (
            ["fit.target=features", "fit.first_seed=4294965000", "fit.judged=1000"],
            "the seeds of this fit end at 4294967399",
        ),
        (["fit.target=features", "fit.judged=9"], "needs at least 65 images"),
        (["fit.target=features", "reference=null"], "give reference="),
        (["fit.fine=4", "nfe=9"], "no finer than this grid"),
    ],
)
def test_bad_requests_get_one_sentence(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in one_sentence("fit", *words, "device=cpu")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler.gamma=nothing.json"], "nothing is at nothing.json"),
        (["sampler.gamma=true"], "must be 0 to 1"),
        (["sampler.gamma=[1,x]"], "x is no number"),
        (["sampler.gamma=[null,1]"], "None is no number"),
        (["sampler.gamma=[[1]]"], "[1] is no number"),
        (["sampler.gamma=1.5"], "must be 0 to 1"),
        (["sampler.gamma=[1,0.5]", "nfe=9"], "needs 8: one for each step but the first"),
        (["sampler=bdia_edm", "sampler.gamma=obelm"], "is for sampler=bdia_ddim"),
        (["sampler=iia_ddim", "sampler.coefficients=nothing"], "nothing is at nothing"),
        (["sampler=iia_ddim", "+sampler.gamma=0.5"], "no effect on a sampler with columns"),
        (["sampler=iia_spndm", "+sampler.gamma=[1,1,1,1,1,1,1,1]"], "no effect on a sampler with"),
        (["sampler=iia_edm", "nfe=8"], "choose 7 or 9"),
        (["sampler.gamma='auto:x'"], "fit.target='x' is unknown"),
    ],
)
def test_bad_coefficients_get_one_sentence(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in one_sentence("sample", "sampler=bdia_ddim", *words, "device=cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler.gamma=[0]", "nfe=2"], "is 0 at step 2 of 2, which cannot be undone"),
        (["sampler.gamma=[-0.5]", "nfe=2", "state=fixed"], "cannot be undone in fixed point"),
        (["sampler.gamma=obelm", "nfe=4", "state=fixed"], "give a number such as 0.95, or auto"),
    ],
)
def test_a_gamma_that_cannot_be_undone_leaves_no_folder(
    source, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    assert message in one_sentence("roundtrip", f"images={source}", *words, "device=cpu")


@pytest.mark.quick
def test_a_user_s_own_file_is_not_replaced(tmp_path):
    own = tmp_path / "coefficients.json"
    own.write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        fit(tmp_path, *BDIA)
    assert own.read_text() == "mine"


def test_the_record_is_of_one_fit(fitted):
    root, record = fitted
    assert records.load(root / "record.json")["identity"] == record["identity"]
    with pytest.raises(UserError, match="holds another experiment"):
        fit(root, *BDIA, "fit.target=local")
    with pytest.raises(UserError, match=r"class was the default, now 3"):
        fit(root, *BDIA, "fit.within=[0.05,2]", "class=3")
    assert dist.world() == 1
    sigmas = [level[1] for level in record["for"]["levels"]]
    assert all(a > b for a, b in pairwise(sigmas))
