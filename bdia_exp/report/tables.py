"""Tables: makes the paper's tables from records, with measured and published numbers."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from bdia_exp.report.statistics import Interval, difference, interval, mean, verdict

Drawn = dict[str, Any]
"""An experiment's tables as plain data: the contents of tables.json, also used for the figures."""


REPORTS = {
    "mean": "their mean ± standard deviation",
    "min": "their mean ± standard deviation, and in brackets the least of them, which EDM's "
    "protocol reports",
}
"""How a cell with several runs is described."""


def collect(
    experiment: Mapping[str, Any],
    records: Mapping[tuple[str, str, str], Sequence[Any]],
    report: str = "mean",
) -> Drawn:
    """The cells of an experiment, by (table, row, column), in the order of its tables.

    A cell has one run, or several with different seeds. Its `fid` is their mean. With report="min"
    the smallest one is shown beside it, `fid_min`. `fid_sd` is None for a single run.
    """
    everywhere = [*experiment.get("settings", []), *experiment.get("common", [])]
    drawn = []
    for table in experiment["tables"]:
        usual = _model([*everywhere, *table.get("common", [])])
        cells = [
            _cell(table, row, column, runs, usual)
            for row in table["rows"]
            for column in map(str, table["columns"])
            if (runs := records.get((table["name"], row, column)))
        ]
        drawn.append(
            {
                **{key: table[key] for key in ("name", "title", "axis")},
                "rows": list(table["rows"]),
                "columns": [str(column) for column in table["columns"]],
                "match": table.get("match"),
                "cells": cells,
            }
        )
    return {
        "name": experiment["name"],
        "title": experiment["title"],
        "images": experiment["images"],
        "report": report,
        "tables": drawn,
    }


def _cell(
    table: Mapping[str, Any],
    row: str,
    column: str,
    runs: Sequence[Any],
    usual: str | None,
) -> dict[str, Any]:
    """One cell from the records of its runs. `usual` is the model of the published numbers."""
    first = runs[0]
    fids = [run["score"]["fid"] for run in runs]
    published = table.get("published") or {}
    model = first["model"].get("name")
    same_model = usual in (None, model)
    return {
        "row": row,
        "column": column,
        "fid": fmean(fids),
        "fids": fids,
        "fid_mean": fmean(fids),
        "fid_min": min(fids),
        "fid_sd": stdev(fids) if len(fids) > 1 else None,
        "fid_without_block": [run["score"].get("fid_without_block") for run in runs],
        "seeds": [run["identity"]["seeds"] for run in runs],
        "label_accuracy": _mean(runs, "label_accuracy"),
        "clip_score": _mean(runs, "clip_score"),
        "images": first["score"]["images"],
        "nfe": first["nfe"],
        "gamma": first.get("config", {}).get("sampler", {}).get("gamma"),
        "note": first["score"]["note"],
        "reference": first["config"]["reference"],
        "images_per_second": first["images_per_second"],
        "commit": first["commit"],
        "checkpoint_sha256": first["model"]["sha256"],
        "model": model,
        "captions": (first.get("prompts") or {}).get("count"),
        "other_model_than": None if same_model else usual,
        "published": (published.get(row) or {}).get(column) if same_model else None,
    }


def _mean(runs: Sequence[Any], key: str) -> float | None:
    """The mean of a score; None unless all runs have it."""
    found = [run["score"].get(key) for run in runs]
    return None if None in found else fmean(found)


BESIDE: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("label_accuracy", "label accuracy", lambda share: f"{100 * share:.1f} %"),
    ("clip_score", "CLIP score", lambda score: f"{score:.2f}"),
)
"""Other scores of a table, shown if they were measured: the cell's key, its name, its format."""


def _model(overrides: Sequence[str]) -> str | None:
    """The model that the overrides select, or None."""
    named = [word.partition("=")[2] for word in overrides if word.startswith("model=")]
    return named[-1] if named else None


def markdown(drawn: Drawn) -> str:
    """Every table as Markdown. Lower FID is better; bold as `_best` decides."""
    parts = [f"# {drawn['title']}"]
    for table in drawn["tables"]:
        cells = {(cell["row"], cell["column"]): cell for cell in table["cells"]}
        if not cells:
            continue
        parts.append(f"## {table['title']}")
        parts.append(_about(drawn, table["cells"]))
        parts.append(_grid(table, cells, "FID", _fid_texts(table, cells, drawn["report"])))
        first = table["rows"][0]
        if differences := _differences(first, cells):
            parts.append(_grid(table, cells, f"FID minus that of {first}", differences))
        for key, what, told in BESIDE:
            found = {place: cell.get(key) for place, cell in cells.items()}
            texts = {place: told(n) for place, n in found.items() if n is not None}
            if texts:
                parts.append(_grid(table, cells, what, texts))
        if table["match"]:
            parts.append(_nearest_row(table, cells))
    return "\n\n".join(parts) + "\n"


def _as_text(gamma: Any) -> str:
    """A γ of a configuration: a number, a list of them, obelm, or the name of a file."""
    if isinstance(gamma, list):
        return ", ".join(map(_as_text, gamma))
    return gamma if isinstance(gamma, str) else f"{gamma:g}"


def _about(drawn: Drawn, cells: Sequence[Mapping[str, Any]]) -> str:
    """Information about all numbers of a table: the number of images, the kind of FID."""
    images = sorted({cell["images"] for cell in cells})
    notes = sorted({cell["note"] for cell in cells})
    runs = sorted({len(cell["fids"]) for cell in cells})
    each = " or ".join(f"{n:,}" for n in images)
    sentences = [f"{each} images a run, the same seeds in every cell", "; ".join(notes)]
    if others := {(c["model"], c["other_model_than"]) for c in cells if c.get("other_model_than")}:
        swapped = " and ".join(f"model={name}, not {usual}" for name, usual in sorted(others))
        sentences.append(f"**made with {swapped}**")
    if repeated := sorted(
        {c["captions"] for c in cells if 0 < (c.get("captions") or 0) < c["images"]}
    ):
        how_many = " or ".join(f"{n:,}" for n in repeated)
        sentences.append(f"**only {how_many} captions**, drawn from again and again")
    if all(parts for cell in cells for parts in cell["fid_without_block"]):
        sentences.append(
            "± is half of the 95 % interval over seeds; differences are paired by seed; bold: not "
            "shown to be worse than the smallest FID of the column"
        )
    if runs != [1]:
        how_many = " or ".join(map(str, runs))
        sentences.append(f"of {how_many} seed ranges: {REPORTS[drawn['report']]}")
    gammas = {(c["row"], _as_text(c["gamma"])) for c in cells if c["gamma"] and "γ" not in c["row"]}
    if gammas:
        sentences.append(" and ".join(f"{row} has γ = {gamma}" for row, gamma in sorted(gammas)))
    references = sorted({cell["reference"] for cell in cells})
    if len(references) > 1:
        sentences.append(f"**not comparable**: scored against {' and '.join(references)}")
    if images[0] < drawn["images"] and any(cell["published"] for cell in cells):
        sentences.append(
            f"fewer images than the {drawn['images']:,} of the published numbers give a larger "
            "FID: do not compare with them"
        )
    return ". ".join(f"{s[0].upper()}{s[1:]}" for s in sentences) + "."


def _fid_texts(table: Mapping[str, Any], cells: Mapping, report: str) -> dict[tuple[str, str], str]:
    best = {key for column in table["columns"] for key in _best(column, cells)}
    texts = {}
    for key, cell in cells.items():
        text = f"{cell['fid']:.3f}"
        if len(cell["fids"]) == 1 and (own := _interval(cell)):
            text = str(own)
        if key in best:
            text = f"**{text}**"
        least = cell["fid_min"] if report == "min" and cell["fid_sd"] is not None else None
        if cell["fid_sd"] is not None:
            text += f" ± {cell['fid_sd']:.3f}" + (f" [{least:.3f}]" if least is not None else "")
        if (published := cell["published"]) is not None:
            text += f" (published {published}, {cell['fid'] - published:+.2f}"
            text += f" [{least - published:+.2f}])" if least is not None else ")"
        texts[key] = text
    return texts


def _interval(cell: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> Interval | None:
    """The interval of a cell's FID, or of its paired difference from another cell's.

    None if a record lacks the parts, as older ones do, or if the two have other seeds.
    """
    parts = cell["fid_without_block"]
    if other is None:
        found = [interval(*one) for one in zip(cell["fids"], parts, strict=True) if one[1]]
    elif cell["seeds"] == other["seeds"]:
        runs = zip(cell["fids"], parts, other["fids"], other["fid_without_block"], strict=True)
        found = [difference(*one) for one in runs if one[1] and one[3]]
    else:
        return None
    return mean(found) if len(found) == len(parts) else None


def _best(column: str, cells: Mapping) -> list[tuple[str, str]]:
    """The cells of a column that are not shown to be worse than the one with the least FID.

    None if there is nothing to compare, or if a comparison is not possible.
    """
    found = {key: cell for key, cell in cells.items() if cell["column"] == column}
    if len(found) < 2:
        return []
    least = min(found.values(), key=lambda cell: cell["fid"])
    compared = {key: _interval(cell, least) for key, cell in found.items()}
    if None in compared.values():
        return []
    return [key for key, one in compared.items() if one and verdict(one) != "worse"]


def _differences(first: str, cells: Mapping) -> dict[tuple[str, str], str]:
    """The paired difference of each cell from that of the first row, and what it shows."""
    texts = {}
    for (row, column), cell in cells.items():
        base = cells.get((first, column))
        if base and row != first and (found := _interval(cell, base)):
            texts[row, column] = f"{found.value:+.3f} ± {found.half_width:.3f}, {verdict(found)}"
    return texts


def _nearest_row(table: Mapping[str, Any], cells: Mapping) -> str:
    """The row nearest to the published numbers in `match`, by its largest relative difference."""
    wanted = {str(column): fid for column, fid in table["match"].items()}
    goal = " / ".join(map(str, wanted.values()))
    distance = {
        row: max(abs(cells[row, column]["fid"] / fid - 1) for column, fid in wanted.items())
        for row in table["rows"]
        if all((row, column) in cells for column in wanted)
    }
    if not distance:
        return f"No row has all the columns to be compared with the published {goal} yet."
    row = min(distance, key=distance.__getitem__)
    return (
        f"Nearest to the published {goal}: **{row}**, off by {100 * distance[row]:.1f} % at most "
        f"(of {len(distance)} rows measured)."
    )


def _grid(table: Mapping[str, Any], cells: Mapping, what: str, texts: Mapping) -> str:
    lines = [
        f"| {what}, {table['axis']} | " + " | ".join(table["columns"]) + " |",
        "|---|" + "--:|" * len(table["columns"]),
    ]
    for row in table["rows"]:
        line = [texts.get((row, column), "–") for column in table["columns"]]
        lines.append(f"| {row} | " + " | ".join(line) + " |")
    return "\n".join(lines)
