"""Tables: makes the paper's tables from their cells, with measured and published numbers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bdia_exp.report.cells import Drawn
from bdia_exp.report.comparable import obstacle
from bdia_exp.report.statistics import (
    Interval,
    difference,
    interval,
    mean,
    told,
    told_difference,
    verdict,
)

REPORTS = {
    "mean": "their mean ± standard deviation",
    "min": "their mean ± standard deviation, and in brackets the least of them, which EDM's "
    "protocol reports",
}
"""How a cell with several runs is described."""
BESIDE: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("label_accuracy", "label accuracy", lambda share: f"{100 * share:.1f} %"),
    ("clip_score", "CLIP score", lambda score: f"{score:.2f}"),
)
"""Other scores of a table, shown if they were measured: the cell's key, its name, its format."""


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
        for key, what, as_text in BESIDE:
            found = {place: cell.get(key) for place, cell in cells.items()}
            texts = {place: as_text(n) for place, n in found.items() if n is not None}
            if texts:
                parts.append(_grid(table, cells, what, texts))
        parts += _as_asked_grids(table, cells)
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
    same = all(cell["seeds"] == cells[0]["seeds"] for cell in cells)
    seeds = ", the same seeds in every cell" if same else ""
    sentences = [f"{each} images a run{seeds}", "; ".join(notes)]
    if others := {(c["model"], c["other_model_than"]) for c in cells if c.get("other_model_than")}:
        swapped = " and ".join(f"model={name}, not {usual}" for name, usual in sorted(others))
        sentences.append(f"**made with {swapped}**")
    if repeated := sorted(
        {c["captions"] for c in cells if 0 < (c.get("captions") or 0) < c["images"]}
    ):
        how_many = " or ".join(f"{n:,}" for n in repeated)
        sentences.append(f"**only {how_many} captions**, drawn from again and again")
    if all(parts for cell in cells for parts in cell["fid_without_block"]):
        but = ", except in the FID of several seed ranges" if runs != [1] else ""
        sentences.append(
            f"± is half of the 95 % interval over seeds{but}; differences are paired by seed; "
            "bold: not shown to be worse than the smallest FID of the column"
        )
    if runs != [1]:
        how_many = " or ".join(map(str, runs))
        sentences.append(f"FID of {how_many} seed ranges: {REPORTS[drawn['report']]}")
    gammas = {(c["row"], _as_text(c["gamma"])) for c in cells if c["gamma"] and "γ" not in c["row"]}
    if gammas:
        sentences.append(" and ".join(f"{row} has γ = {gamma}" for row, gamma in sorted(gammas)))
    sentences += _not_comparable(cells)
    if images[0] < drawn["images"] and any(cell["published"] for cell in cells):
        sentences.append(
            f"fewer images than the {drawn['images']:,} of the published numbers give a larger "
            "FID: do not compare with them"
        )
    return ". ".join(f"{s[0].upper()}{s[1:]}" for s in sentences) + "."


def _not_comparable(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the cells that cannot be compared, whatever their seeds."""
    references = sorted({cell["reference"] for cell in cells})
    against = " and ".join(references) if len(references) > 1 else "different references"
    why = {
        "features": "scored in different features",
        "reference": f"scored against {against}",
        "images": "FID falls as the number of images grows",
    }
    found = {obstacle(cells[0], cell) for cell in cells}
    return [f"**not comparable**: {text}" for what, text in why.items() if what in found]


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


Runs = Callable[[Mapping[str, Any]], list[tuple[Any, Any]]]
"""The score of each run of a cell, and the same without each block of its seeds (None: unknown)."""


def _fids(cell: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [*zip(cell["fids"], cell["fid_without_block"], strict=True)]


def _shares(aspect: str, cell: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    found = cell.get("as_asked", {}).get(aspect, {"shares": [], "without_block": []})
    return [*zip(found["shares"], found["without_block"], strict=True)]


def _interval(
    cell: Mapping[str, Any], other: Mapping[str, Any] | None = None, runs: Runs = _fids
) -> Interval | None:
    """The interval of a cell's score, or of its paired difference from another cell's.

    None if a record lacks the parts, as older ones do, or if the two cannot be compared.
    """
    own = runs(cell)
    if other is None:
        found = [interval(*one) for one in own if one[1]]
    elif obstacle(cell, other):
        return None
    else:
        pairs = zip(own, runs(other), strict=True)
        found = [difference(*a, *b) for a, b in pairs if a[1] and b[1]]
    return mean(found) if found and len(found) == len(own) else None


def _best(column: str, cells: Mapping) -> list[tuple[str, str]]:
    """The cells of a column that are not shown to be worse than the one with the least FID.

    Empty if there is nothing to compare, or if a comparison is not possible.
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
            texts[row, column] = told_difference(found)
    return texts


def _as_asked_grids(table: Mapping[str, Any], cells: Mapping) -> list[str]:
    """The shares of images as asked, in percent, and their paired differences from the first row.

    Larger is better.
    """
    grids, first = [], table["rows"][0]
    for aspect in dict.fromkeys(a for cell in cells.values() for a in cell.get("as_asked", {})):
        runs, texts, differences = partial(_shares, aspect), {}, {}
        for (row, column), cell in cells.items():
            if own := _interval(cell, runs=runs):
                texts[row, column] = told(own, is_share=True)
            base = cells.get((first, column))
            if base and row != first and (found := _interval(cell, base, runs)):
                differences[row, column] = told_difference(found, is_share=True)
        if texts:
            grids.append(_grid(table, cells, f"{aspect} as asked", texts))
        if differences:
            what = f"{aspect} as asked, minus that of {first}"
            grids.append(_grid(table, cells, what, differences))
    return grids


def _nearest_row(table: Mapping[str, Any], cells: Mapping) -> str:
    """The row nearest to the published numbers in `match`, by its largest relative difference."""
    wanted = table["match"]
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
