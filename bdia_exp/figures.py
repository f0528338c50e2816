"""Figures drawn from tables and sheets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from PIL import Image, ImageDraw, ImageFont

from bdia_exp.store import atomic, save_image


def fid_curves(drawn: Mapping[str, Any], path: Path) -> None:
    """FID against NFE, one panel a table, one line a row; logarithmic where FIDs differ twofold."""
    tables = [table for table in drawn["tables"] if table["cells"]]
    figure = Figure(figsize=(5.5 * len(tables), 4.2), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)
    for panel, table in zip(panels[0], tables, strict=True):
        for row in table["rows"]:
            points = sorted((c["nfe"], c["fid"]) for c in table["cells"] if c["row"] == row)
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", label=row)
        panel.set(xscale="log", xlabel="network evaluations (NFE)", ylabel="FID")
        panel.set_title(table["title"], fontsize=10)
        panel.xaxis.set_major_locator(FixedLocator(sorted({c["nfe"] for c in table["cells"]})))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(ScalarFormatter())
        fids = [cell["fid"] for cell in table["cells"]]
        if max(fids) > 2 * min(fids):
            panel.set_yscale("log")
            panel.yaxis.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "2357" else ""
            )
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    notes = sorted({cell["note"] for table in tables for cell in table["cells"]})
    figure.supxlabel("; ".join(notes), fontsize=8)
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=120)


def side_by_side(strips: Mapping[str, Path], path: Path) -> None:
    """Pictures under each other, each with its name beside it; those that are missing left out."""
    rows = [(name, Image.open(file)) for name, file in strips.items() if file.exists()]
    font = ImageFont.truetype(findfont("DejaVu Sans"), 13)  # comes with matplotlib, has a γ
    margin = 12 + max(int(font.getlength(name)) for name, _ in rows)
    gap = 6
    width = margin + max(picture.width for _, picture in rows)
    height = sum(picture.height + gap for _, picture in rows)
    sheet = Image.new("RGB", (width, height), "white")
    pen, y = ImageDraw.Draw(sheet), 0
    for name, picture in rows:
        pen.text((4, y + picture.height // 2 - 9), name, fill="black", font=font)
        sheet.paste(picture, (margin, y))
        y += picture.height + gap
    save_image(path, sheet)
