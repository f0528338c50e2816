"""Tables are pure functions of records."""

from bdia_exp import tables
from bdia_exp.figures import fid_curves, side_by_side
from bdia_exp.store import save_image, to_pil

EXPERIMENT = {
    "name": "x",
    "title": "X",
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


def record(fid: float, nfe: int, accuracy: float | None = 0.5) -> dict:
    score = {"fid": fid, "images": 1000, "note": "not comparable", "label_accuracy": accuracy}
    return {
        "score": score,
        "nfe": nfe,
        "images_per_second": 1.0,
        "commit": "c",
        "model": {"sha256": "s"},
    }


RECORDS = {
    ("t", "A", "5"): record(3.0, 5),
    ("t", "A", "9"): record(2.0, 9),
    ("t", "B", "5"): record(4.0, 5, 0.75),
}


def test_markdown_shows_measured_beside_published_and_what_is_missing():
    text = tables.markdown(tables.collect(EXPERIMENT, RECORDS))
    assert "| FID, NFE | 5 | 9 |" in text
    assert "| A | **3.000** (published 3.25, -0.25) | **2.000** |" in text
    assert "| B | 4.000 | – |" in text
    assert "| B | 75.0 % | – |" in text
    assert "1,000 images a cell" in text
    assert "not comparable" in text


def test_a_table_without_records_is_left_out():
    more = {**EXPERIMENT, "tables": [*EXPERIMENT["tables"], {**EXPERIMENT["tables"][0]}]}
    more["tables"][1] = {**more["tables"][1], "name": "u", "title": "Unmeasured"}
    assert "Unmeasured" not in tables.markdown(tables.collect(more, RECORDS))


def test_figures_are_drawn(tmp_path):
    import torch
    from PIL import Image

    fid_curves(tables.collect(EXPERIMENT, RECORDS), tmp_path / "fid.png")
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
