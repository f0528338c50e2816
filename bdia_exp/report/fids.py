"""Figures of FID."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from bdia_exp.report.figures import new_figure, save_figure, some, style, ticks_at


def fid_curves(drawn: Mapping[str, Any], path: Path) -> None:
    """FID against NFE, or against the columns if they are other numbers, such as λ.

    A panel per table, at most three in a row; a line per row. FIDs that differ twofold: log scale.
    """
    tables = [table for table in drawn["tables"] if table["cells"]]
    below = max(len(table["rows"]) for table in tables) > 6  # a long legend would hide the lines
    across = 2 if len(tables) == 4 else min(len(tables), ACROSS)
    down = -(-len(tables) // across)
    most = max(len(table["rows"]) for table in tables)
    figure = new_figure(5.5 * across, (4.2 + 0.1 * most * below) * down)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    notes = {table["name"]: _notes(table) for table in tables}
    one_kind = len({*notes.values()}) == 1
    for panel, table in zip(panels, tables, strict=False):
        fid_panel(panel, table)
        if not one_kind:
            panel.set_title(f"{panel.get_title()}\n{notes[table['name']]}", fontsize=9)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2, "fontsize": 7}
        panel.legend(**place if below else {"fontsize": 8})
    for panel in panels[len(tables) :]:
        panel.set_axis_off()
    if one_kind:
        figure.supxlabel(notes[tables[0]["name"]], fontsize=8)
    save_figure(figure, path)


ACROSS = 3
"""Panels beside each other."""


def _notes(table: Mapping[str, Any]) -> str:
    """What the FIDs of a table are."""
    return "; ".join(sorted({cell["note"] for cell in table["cells"]}))


def fid_panel(panel: Any, table: Mapping[str, Any]) -> None:
    """The lines of one table."""
    cells = table["cells"]
    place = _number if table["axis"] != "NFE" and _are_numbers(table["columns"]) else _nfe
    for number, row in enumerate(table["rows"]):
        points = sorted((place(cell), cell["fid"]) for cell in cells if cell["row"] == row)
        if points:
            panel.plot(*zip(*points, strict=True), label=row, **style(number))
    panel.set(ylabel="FID", xlabel="network evaluations (NFE)")
    if place is _nfe:
        panel.set_xscale("log")
        ticks_at(panel, sorted({cell["nfe"] for cell in cells}))
    else:
        panel.set_xlabel(table["axis"])
    panel.set_title(fill(table["title"], 60), fontsize=10)
    fids = [cell["fid"] for cell in cells]
    if max(fids) > 2 * min(fids):
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(some)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3, which="both")


def _nfe(cell: Mapping[str, Any]) -> float:
    return float(cell["nfe"])


def _number(cell: Mapping[str, Any]) -> float:
    return float(cell["column"])


def _are_numbers(words: Sequence[str]) -> bool:
    try:
        return bool([float(word) for word in words])
    except ValueError:
        return False
