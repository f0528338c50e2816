"""The cells of tables, from records: numbers as plain data, as tables.json has them."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from bdia_exp.report.comparable import conditions

Drawn = dict[str, Any]
"""An experiment's tables as plain data: the contents of tables.json, also used for the figures."""


NEEDED: dict[str, type | tuple[type, ...]] = {
    **{"score.fid": (int, float), "score.images": int, "score.note": str},
    **{"nfe": int, "images_per_second": (int, float), "commit": str},
    **{"identity.seeds": str, "config.reference": str, "model.sha256": str},
}
"""The entries of a run's record that its cell shows, and their types."""
AS_ASKED = "_as_asked"
"""The end of the keys of a score that are shares of images: class_as_asked."""


def lacking(record: Mapping[str, Any]) -> list[str]:
    """The needed entries that a record does not have, or has with another type."""

    def entry(name: str) -> Any:
        value: Any = record
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return [name for name, kind in NEEDED.items() if not isinstance(entry(name), kind)]


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
            for column in table["columns"]
            if (runs := records.get((table["name"], row, column)))
        ]
        drawn.append(
            {
                **{key: table[key] for key in ("name", "title", "axis")},
                "rows": list(table["rows"]),
                "columns": list(table["columns"]),
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
        **conditions(first),
        "seeds": [run["identity"]["seeds"] for run in runs],
        "label_accuracy": _mean(runs, "label_accuracy"),
        "clip_score": _mean(runs, "clip_score"),
        "as_asked": _as_asked(runs),
        "nfe": first["nfe"],
        "gamma": first.get("config", {}).get("sampler", {}).get("gamma"),
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


def _as_asked(runs: Sequence[Any]) -> dict[str, Any]:
    """The shares of images that are as their prompts ask, by aspect: of each run, and its parts."""
    found = {}
    for key in runs[0]["score"]:
        if key.endswith(AS_ASKED) and all(key in run["score"] for run in runs):
            parts = [run["score"].get(f"{key}_without_block") for run in runs]
            shares = [run["score"][key] for run in runs]
            found[key.removesuffix(AS_ASKED)] = {"shares": shares, "without_block": parts}
    return found


def _model(overrides: Sequence[str]) -> str | None:
    """The model that the overrides select, or None."""
    named = [word.partition("=")[2] for word in overrides if word.startswith("model=")]
    return named[-1] if named else None
