"""compare: scores of runs side by side, with intervals and paired differences."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from bdia_exp.cli.configs import call
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError

TOY = ["model=toy", "features=bundled", "score=true", "save=none", "device=cpu", "batch=45"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Scored runs of 90 images: `coarse`, `fine`, of `other` seeds; and of 66, `fewer`."""
    root = tmp_path_factory.mktemp("runs")
    for name, words in {
        "coarse": ["images=90", "nfe=3"],
        "fine": ["images=90", "nfe=9"],
        "other": ["seeds=90-179", "nfe=3"],
        "fewer": ["images=66", "nfe=3"],
    }.items():
        call("sample", [*TOY, *words, f"out={root / name}"])
    return root


def compare(*names: Path | str, out: Path | None = None) -> dict:
    words = [str(name) for name in names] + ([f"out={out}"] if out else [])
    (overrides,) = expand("compare", tuple(words), multirun=False)
    return call("compare", overrides)


def half_width(without: list) -> float:
    """Of the 95 % interval of a grouped jackknife, written with other functions."""
    blocks = len(without)
    return t.ppf(0.975, blocks - 1) * np.std(without) * np.sqrt(blocks - 1)


@pytest.mark.quick
def test_a_difference_is_paired_by_blocks_of_seeds(runs, tmp_path, capsys):
    found = compare(runs / "coarse", runs / "fine", out=tmp_path / "compared.json")
    printed = capsys.readouterr().out
    scores = [json.loads((runs / name / "record.json").read_text()) for name in ("coarse", "fine")]
    (a, b), (a_parts, b_parts) = (
        [run["score"][key] for run in scores] for key in ("fid", "fid_without_block")
    )
    change, half = b - a, half_width(np.subtract(b_parts, a_parts))
    assert found["runs"][1]["FID"]["minus_first"] == pytest.approx(
        {"value": change, "half_width": half}
    )
    words = "no difference shown" if abs(change) <= half else "better" if change < 0 else "worse"
    assert f"| {runs / 'fine'} | 9 | {b:.3f} ± {half_width(b_parts):.3f} |" in printed
    assert f"| {change:+.3f} ± {half:.3f}, {words} |" in printed
    assert "90 images a run." in printed
    assert printed.rstrip().endswith("Differences are paired by seed.")
    assert json.loads((tmp_path / "compared.json").read_text()) == json.loads(json.dumps(found))
    back = compare(runs / "fine", runs / "coarse")["runs"][1]["FID"]["minus_first"]
    assert back["value"] == pytest.approx(-change)


def test_runs_of_other_seeds_get_no_difference(runs, capsys):
    _, other, _ = compare(runs / "coarse", runs / "other", runs / "fine")["runs"]
    assert other["FID"]["minus_first"] is None
    printed = capsys.readouterr().out
    assert f"so no difference is given: {runs / 'other'}. Differences are paired" in printed
    compare(runs / "coarse", runs / "other")
    printed = capsys.readouterr().out
    assert f"so no difference is given: {runs / 'other'}.\n" in printed
    assert "shown" not in printed


def test_scores_of_files_are_paired_by_place(runs, tmp_path):
    """A score of `evaluate` does not tell the seeds, so it is not paired with that of a run."""
    words = [word for word in TOY if word != "save=none"]
    call("sample", [*words, "images=90", "nfe=3", f"out={tmp_path / 'kept'}"])
    score = tmp_path / "kept.json"
    call("evaluate", [f"images={tmp_path / 'kept'}", "features=bundled", f"out={score}"])
    first, second = compare(runs / "coarse", score)["runs"]
    assert second["FID"]["value"] == pytest.approx(first["FID"]["value"], abs=1e-6)
    assert second["FID"]["minus_first"] is None
    _, again = compare(score, score)["runs"]
    assert again["FID"]["minus_first"] == pytest.approx({"value": 0, "half_width": 0}, abs=1e-6)


def test_larger_shares_are_better(runs, tmp_path, capsys):
    """As in records of `metrics=[fid,prompt]`."""
    for name, shift in (("low", 0.0), ("high", 0.2)):
        record = json.loads((runs / "coarse/record.json").read_text())
        shares = [0.5 + shift + 0.001 * (block % 3) for block in range(20)]
        record["score"] |= {"class_as_asked": 0.5 + shift, "class_as_asked_without_block": shares}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    compare(tmp_path / "low.json", tmp_path / "high.json")
    printed = capsys.readouterr().out
    assert "| +20.0 ± 0.0 %, better |" in printed
    assert "| +0.000 ± 0.000, no difference shown |" in printed


def test_without_blocks_there_is_no_interval(runs, capsys):
    compare(runs / "fewer", runs / "fewer")
    printed = capsys.readouterr().out
    assert "±" not in printed
    assert f"Too few images for an interval, or an old score: {runs / 'fewer'}" in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": {"images": 91}}, "have 90 and 91 images: FID falls"),
        ({"score": {"features_sha256": "0"}}, "scored in different features"),
        ({"reference_sha256": "0"}, r"different references \(.*, sha256 \w{8}…; .*, sha256 0…\)"),
        ({"config": {"reference": "else.npz"}, "reference_sha256": None}, "different references"),
        ({"score": None}, "has no score: run the same `sample` with score=true"),
        ({"complete": False}, "has no score"),
        ({"score": {"fid": "large"}}, "is damaged"),
        ({"score": {"fid_without_block": [[]]}}, "is damaged"),
        ({"score": {"images": None}}, "is damaged"),
    ],
)
def test_scores_that_cannot_be_compared(runs, tmp_path, changed, message):
    record = json.loads((runs / "coarse/record.json").read_text())
    for key, value in changed.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    if record["score"] is None:
        del record["score"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        compare(runs / "coarse", other)


def test_what_is_no_run(runs, tmp_path):
    with pytest.raises(UserError, match="has no record: give the folder of a run"):
        compare(runs / "coarse", tmp_path / "nothing")
    with pytest.raises(UserError, match="give two runs or more"):
        compare(runs / "coarse")


def test_only_an_earlier_comparison_is_replaced(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    record = runs / "fine/record.json"
    before = record.read_bytes()
    for out in (notes, record, Path(".")):
        with pytest.raises(UserError, match="is there and is not an earlier result of `compare`"):
            compare(runs / "coarse", runs / "fine", out=out)
    assert (notes.read_text(), record.read_bytes()) == ("mine", before)
    for other in ("fine", "other"):  # the second time it replaces the first
        compare(runs / "coarse", runs / other, out=tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["runs"][1]["run"] == str(runs / "other")


def test_names_may_have_commas_and_spaces():
    """As the folders of --multirun have."""
    (words,) = expand("compare", ("runs/nfe=3,sampler=ddim", "runs/a b", "out=c.json"), False)
    assert words == ["runs=['runs/nfe=3,sampler=ddim','runs/a b']", "out='c.json'"]
