"""Tables are pure functions of records."""

import pytest

from bdia_exp.report import tables
from bdia_exp.report.cells import collect
from bdia_exp.report.fids import fid_curves
from bdia_exp.report.figures import side_by_side
from bdia_exp.store.files import save_image
from bdia_exp.store.pictures import to_pil

EXPERIMENT = {
    "name": "x",
    "title": "X",
    "images": 1000,
    "tables": [
        {
            "name": "t",
            "title": "T",
            "axis": "NFE",
            "rows": {"A": [], "B": []},
            "columns": {"5": [], "9": []},
            "published": {"A": {"5": 3.25}},
        }
    ],
}


def record(fid: float, nfe: int, accuracy: float | None = 0.5, seeds: str = "0-999") -> dict:
    score = {"fid": fid, "images": 1000, "note": "not comparable", "label_accuracy": accuracy}
    return {
        "identity": {"seeds": seeds},
        "config": {"reference": "r.npz"},
        "score": score,
        "nfe": nfe,
        "images_per_second": 1.0,
        "commit": "c",
        "model": {"sha256": "s"},
    }


RECORDS = {
    ("t", "A", "5"): [record(3.0, 5)],
    ("t", "A", "9"): [record(2.0, 9)],
    ("t", "B", "5"): [record(4.0, 5, 0.75)],
}


def test_markdown_shows_measured_beside_published_and_what_is_missing():
    text = tables.markdown(collect(EXPERIMENT, RECORDS))
    assert "| FID, NFE | 5 | 9 |" in text
    assert "| A | 3.000 (published 3.25, -0.25) | 2.000 |" in text
    assert "| B | 4.000 | – |" in text
    assert "| B | 75.0 % | – |" in text
    assert "1,000 images a run" in text
    assert "Not comparable" in text


RANGES = [record(fid, 5, None, seeds) for fid, seeds in [(3.0, "0-9"), (2.0, "50-59"), (4.0, "x")]]


def test_several_seed_ranges_give_the_mean_and_its_spread():
    drawn = collect(EXPERIMENT, {("t", "A", "5"): RANGES}, "mean")
    (cell,) = drawn["tables"][0]["cells"]
    assert (cell["fid"], cell["fid_sd"], cell["seeds"]) == (3.0, 1.0, ["0-9", "50-59", "x"])
    text = tables.markdown(drawn)
    assert "3.000 ± 1.000 (published 3.25, -0.25)" in text
    assert "3 seed ranges: their mean ± standard deviation" in text


def test_the_least_of_several_seed_ranges_stands_beside_their_mean():
    drawn = collect(EXPERIMENT, {("t", "A", "5"): RANGES}, "min")
    cell = drawn["tables"][0]["cells"][0]
    assert (cell["fid"], cell["fid_min"]) == (3.0, 2.0)
    text = tables.markdown(drawn)
    assert "3.000 ± 1.000 [2.000] (published 3.25, -0.25 [-1.25])" in text
    assert "in brackets the least of them, which EDM's protocol reports" in text


def with_parts(fid: float, spread: float, shift: float = 0.0, seeds: str = "0-999") -> dict:
    """A record with the FID without each of four blocks: `spread` is common to all samplers."""
    found = record(fid, 5, seeds=seeds)
    parts = [
        fid + step * spread + sign * shift for step, sign in [(1, 1), (2, -1), (-1, -1), (-2, 1)]
    ]
    return {**found, "score": {**found["score"], "fid_without_block": parts}}


def drawn(*runs: list[dict]) -> str:
    """The table of one column with these rows."""
    table = {**EXPERIMENT["tables"][0], "rows": {key: [] for key in "ABC"}, "published": None}
    records = {("t", row, "5"): found for row, found in zip("ABC", runs, strict=False)}
    return tables.markdown(collect({**EXPERIMENT, "tables": [table]}, records))


def test_a_cell_has_its_interval_and_its_paired_difference():
    """The spread that two runs of the same seeds share is not in their difference."""
    text = drawn(
        [with_parts(3.0, 0.1)], [with_parts(2.9, 0.1, 0.01)], [with_parts(2.895, 0.1, 0.02)]
    )
    assert "| A | **3.000 ± 0.872** | – |" in text  # C, the least, is not shown to be better
    assert "| B | **2.900 ± 0.856** | – |" in text
    assert "| C | **2.895 ± 0.843** | – |" in text
    assert "| FID minus that of A, NFE | 5 | 9 |" in text
    assert "| B | -0.100 ± 0.055, better | – |" in text
    assert "| C | -0.105 ± 0.110, no difference shown | – |" in text


def test_nothing_is_bold_where_the_cells_cannot_be_compared():
    """Records of earlier releases have no parts; other seeds are not paired."""
    assert "**" not in drawn([with_parts(3.0, 0.1)], [record(2.0, 5)])
    assert "**" not in drawn([with_parts(3.0, 0.1)], [with_parts(2.0, 0.1, seeds="5-9")])
    assert "**" not in drawn([with_parts(3.0, 0.1)])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"config": {"reference": "s.npz"}}, "scored against r.npz and s.npz"),
        ({"reference_sha256": "1"}, "scored against different references"),
        ({"score": {"features_sha256": "1"}}, "scored in different features"),
        ({"score": {"images": 2000}}, "FID falls as the number of images grows"),
    ],
)
def test_what_cannot_be_compared_gets_no_verdict(changed, why):
    first, other = with_parts(3.0, 0.1), with_parts(2.0, 0.1, 0.01)
    if "reference_sha256" in changed:
        first["reference_sha256"] = "0"
    changed = changed | ({"score": other["score"] | changed["score"]} if "score" in changed else {})
    text = drawn([first], [other | changed])
    assert f"**not comparable**: {why}" in text
    assert text.count("**") == 2  # nothing is bold
    assert "better" not in text


def test_a_reference_of_another_name_and_the_same_content_is_the_same():
    first, other = (
        with_parts(fid, 0.1, shift) | {"config": {"reference": name}, "reference_sha256": "0"}
        for fid, shift, name in ((3.0, 0.0, "r.npz"), (2.0, 0.01, "s.npz"))
    )
    text = drawn([first], [other])
    assert "not comparable**" not in text
    assert "better" in text


def test_several_seed_ranges_are_compared_range_by_range():
    first = [with_parts(3.0, 0.1), with_parts(4.0, 0.1, seeds="1000-1999")]
    second = [with_parts(2.9, 0.1, 0.01), with_parts(3.9, 0.1, 0.01, "1000-1999")]
    text = drawn(first, second)
    assert "| B | **3.400** ± 0.707 | – |" in text
    assert "| B | -0.100 ± 0.039, better | – |" in text


def test_the_plus_minus_of_several_seed_ranges_is_not_called_an_interval():
    single, other = [with_parts(3.0, 0.1)], [with_parts(4.0, 0.1, seeds="1000-1999")]
    assert "± is half of the 95 % interval over seeds; differences" in drawn(single, single)
    text = drawn(single, single + other)
    assert "± is half of the 95 % interval over seeds, except in the FID of several seed" in text
    assert "FID of 1 or 2 seed ranges: their mean ± standard deviation" in text


def test_equal_seeds_are_claimed_only_where_all_cells_have_them():
    single, other = [with_parts(3.0, 0.1)], [with_parts(4.0, 0.1, seeds="1000-1999")]
    for cells in ((single, single), (single + other, single + other)):
        assert "images a run, the same seeds in every cell." in drawn(*cells)
    for cells in ((single, other), (single + other, single)):
        assert "the same seeds" not in drawn(*cells)


def test_a_gamma_that_the_row_does_not_name_is_told():
    with_gamma = {**record(2.0, 9), "config": {"reference": "r.npz", "sampler": {"gamma": 0.5}}}
    told = tables.markdown(collect(EXPERIMENT, {("t", "A", "9"): [with_gamma]}))
    assert "A has γ = 0.5." in told
    rows = {"A γ=0.5": [], "B": []}
    named = {**EXPERIMENT, "tables": [{**EXPERIMENT["tables"][0], "rows": rows}]}
    found = {("t", "A γ=0.5", "9"): [with_gamma], ("t", "B", "5"): [record(4.0, 5)]}
    assert "has γ" not in tables.markdown(collect(named, found))


def test_a_gamma_may_be_a_list_or_a_name():
    for gamma, text in (([1.0, "1/2"], "γ = 1, 1/2"), ("obelm", "γ = obelm"), (1.0, "γ = 1.")):
        run = record(3.0, 5)
        run["config"]["sampler"] = {"gamma": gamma}
        assert text in tables.markdown(collect(EXPERIMENT, {("t", "A", "5"): [run]}))


def test_fewer_images_than_the_published_numbers_are_pointed_out():
    many = {**EXPERIMENT, "images": 50_000}
    assert "larger FID: do not compare" in tables.markdown(collect(many, RECORDS))
    assert "do not compare" not in tables.markdown(collect(EXPERIMENT, RECORDS))
    own = {**many, "tables": [{**EXPERIMENT["tables"][0], "published": None}]}
    assert "do not compare" not in tables.markdown(collect(own, RECORDS))


def test_scores_against_different_references_are_pointed_out():
    other = {**record(2.0, 9), "config": {"reference": "s.npz"}}
    mixed = RECORDS | {("t", "A", "9"): [other]}
    text = tables.markdown(collect(EXPERIMENT, mixed))
    assert "**not comparable**: scored against r.npz and s.npz" in text


def test_the_row_nearest_to_the_published_one_is_named():
    """By the worst column, among the rows that have every column."""
    table = {**EXPERIMENT["tables"][0], "match": {"5": 4.0, "9": 2.0}}
    experiment = {**EXPERIMENT, "tables": [table]}
    text = tables.markdown(collect(experiment, RECORDS))
    assert "Nearest to the published 4.0 / 2.0: **A**, off by 25.0 % at most (of 1 rows" in text
    more = RECORDS | {("t", "B", "9"): [record(2.2, 9)]}
    text = tables.markdown(collect(experiment, more))
    assert "**B**, off by 10.0 % at most (of 2 rows" in text
    none = {key: value for key, value in RECORDS.items() if key[2] == "5"}
    assert "No row has all the columns" in tables.markdown(collect(experiment, none))


def test_a_table_without_records_is_left_out():
    more = {**EXPERIMENT, "tables": [*EXPERIMENT["tables"], {**EXPERIMENT["tables"][0]}]}
    more["tables"][1] = {**more["tables"][1], "name": "u", "title": "Unmeasured"}
    assert "Unmeasured" not in tables.markdown(collect(more, RECORDS))


def test_figures_are_drawn(tmp_path):
    import torch
    from PIL import Image

    fid_curves(collect(EXPERIMENT, RECORDS), tmp_path / "fid.png")
    with Image.open(tmp_path / "fid.png") as plot:
        assert plot.size[0] > 300
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 10
    strip = to_pil(torch.full((1, 4, 8), 7, dtype=torch.uint8))
    save_image(tmp_path / "strip.png", strip)
    strips = {"first": tmp_path / "strip.png", "absent": tmp_path / "no.png"}
    side_by_side(strips, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.getpixel((sheet.width - 1, 0)) == (7, 7, 7)
        assert sheet.height < 20


def test_shares_of_images_as_asked_are_compared_in_pairs():
    def run(share: float, rest: list[float]) -> dict:
        found = record(3.0, 5)
        found["score"] |= {"class_as_asked": share, "class_as_asked_without_block": rest}
        return found

    low, high = [0.5 + 0.001 * k for k in range(20)], [0.9 + 0.001 * k for k in range(20)]
    records = {("t", "A", "5"): [run(0.5, low)], ("t", "B", "5"): [run(0.9, high)]}
    text = tables.markdown(collect(EXPERIMENT, records))
    assert "| class as asked, NFE | 5 | 9 |" in text
    assert "+40.0 ± 0.0 %, better" in text
    (one,) = collect(EXPERIMENT, records)["tables"]
    assert one["cells"][0]["as_asked"]["class"]["shares"] == [0.5]
