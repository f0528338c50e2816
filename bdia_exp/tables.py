"""Tables: from records to the paper's tables, measured beside published."""

from collections.abc import Mapping
from typing import Any

Drawn = dict[str, Any]
"""An experiment's tables as plain data: what tables.json holds and the figures are drawn from."""


def collect(experiment: Mapping[str, Any], records: Mapping[tuple[str, str, str], Any]) -> Drawn:
    """The cells of an experiment, by (table, row, column), in the order of its tables."""
    drawn = []
    for table in experiment["tables"]:
        published = table.get("published") or {}
        cells = []
        for row in table["rows"]:
            for column in map(str, table["columns"]):
                record = records.get((table["name"], row, column))
                if record is None:
                    continue
                score = record["score"]
                cell = {
                    "row": row,
                    "column": column,
                    "fid": score["fid"],
                    "label_accuracy": score.get("label_accuracy"),
                    "images": score["images"],
                    "nfe": record["nfe"],
                    "note": score["note"],
                    "images_per_second": record["images_per_second"],
                    "commit": record["commit"],
                    "checkpoint_sha256": record["model"]["sha256"],
                    "published": (published.get(row) or {}).get(column),
                }
                cells.append(cell)
        columns = [str(column) for column in table["columns"]]
        head = {"name": table["name"], "title": table["title"], "axis": table["axis"]}
        drawn.append({**head, "rows": list(table["rows"]), "columns": columns, "cells": cells})
    return {"name": experiment["name"], "title": experiment["title"], "tables": drawn}


def markdown(drawn: Drawn) -> str:
    """Every table as Markdown. Lower FID is better; the best of each column is bold."""
    parts = [f"# {drawn['title']}"]
    for table in drawn["tables"]:
        cells = {(cell["row"], cell["column"]): cell for cell in table["cells"]}
        if not cells:
            continue
        parts.append(f"## {table['title']}")
        parts.append(_about(table["cells"]))
        parts.append(_grid(table, cells, "FID", _fid_texts(table, cells)))
        if any(cell["label_accuracy"] is not None for cell in cells.values()):
            texts = {
                key: f"{100 * cell['label_accuracy']:.1f} %"
                for key, cell in cells.items()
                if cell["label_accuracy"] is not None
            }
            parts.append(_grid(table, cells, "label accuracy", texts))
    return "\n\n".join(parts) + "\n"


def _about(cells: list[Mapping[str, Any]]) -> str:
    """What holds for every number of a table: how many images, which FID."""
    images = sorted({cell["images"] for cell in cells})
    notes = sorted({cell["note"] for cell in cells})
    each = " or ".join(f"{n:,}" for n in images)
    return f"{each} images a cell, the same seeds in every cell. {'; '.join(notes)}."


def _fid_texts(table: Mapping[str, Any], cells: Mapping) -> dict[tuple[str, str], str]:
    best = {
        column: min((c["fid"] for c in cells.values() if c["column"] == column), default=None)
        for column in table["columns"]
    }
    texts = {}
    for key, cell in cells.items():
        text = f"{cell['fid']:.3f}"
        if cell["fid"] == best[cell["column"]]:
            text = f"**{text}**"
        if cell["published"] is not None:
            text += f" (published {cell['published']}, {cell['fid'] - cell['published']:+.2f})"
        texts[key] = text
    return texts


def _grid(table: Mapping[str, Any], cells: Mapping, what: str, texts: Mapping) -> str:
    lines = [
        f"| {what}, {table['axis']} | " + " | ".join(table["columns"]) + " |",
        "|---|" + "--:|" * len(table["columns"]),
    ]
    for row in table["rows"]:
        line = [texts.get((row, column), "–") for column in table["columns"]]
        lines.append(f"| {row} | " + " | ".join(line) + " |")
    return "\n".join(lines)
