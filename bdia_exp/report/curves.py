"""Figures of fitted coefficients and of the race."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdia_exp.report.fids import fid_panel
from bdia_exp.report.figures import new_figure, save_figure, style, ticks_at


def names_of(drawn: Mapping[str, Any]) -> list[str]:
    """The names of the coefficients of a step: γ, or w0, w1, …"""
    if drawn["fit"]["argument"] == "gamma":
        return ["γ"]
    return [f"w{number}" for number in range(max(map(len, drawn["coefficients"])))]


def first_of(drawn: Mapping[str, Any]) -> int:
    """The number of the first step of a fit: a method that starts in another way begins later."""
    return len(drawn["for"]["levels"]) - len(drawn["coefficients"])


def coefficients(drawn: Mapping[str, Any], path: Path) -> None:
    """Coefficients of each step, and the residuals without and with them."""
    figure = new_figure(9.5, 3.8)
    left, right = figure.subplots(1, 2)
    rows, first = drawn["coefficients"], first_of(drawn)
    for number, name in enumerate(names_of(drawn)):
        points = [(step, row[number]) for step, row in enumerate(rows, first) if len(row) > number]
        left.plot(*zip(*points, strict=True), label=name, **style(number))
    left.set(xlabel="step, from noise to data", ylabel="coefficient")
    left.axhline(0, color="0.7", lw=0.8)
    left.legend(fontsize=8)
    sides = {"residuals": "fitted noises", "held_out_residuals": "held out"}
    for number, (key, name) in enumerate(sides.items()):
        for state, what in (("before", "base"), ("after", "fitted")):
            found = [(k, r) for k, r in enumerate(drawn[key][state], first) if r]
            if found:
                line = {**style(number), "linestyle": "--" if state == "before" else "-"}
                right.plot(*zip(*found, strict=True), label=f"{name}, {what}", **line)
    right.set(xlabel="step, from noise to data", ylabel="RMS residual of a step", yscale="log")
    right.legend(fontsize=8)
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


def race(
    cells: Sequence[Mapping[str, Any]], tables: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Distance from the fine solution against NFE, and FID beside it if it was measured."""
    figure = new_figure(6.5 * (1 + bool(tables)), 5.6)
    panels = figure.subplots(1, 1 + bool(tables), squeeze=False)[0]
    rows = [*dict.fromkeys(cell["row"] for cell in cells)]
    least: dict[int, float] = {}
    for number, row in enumerate(rows):
        points = sorted((cell["nfe"], cell["rms"]) for cell in cells if cell["row"] == row)
        panels[0].plot(*zip(*points, strict=True), label=row, **style(number))
        for nfe, value in points:
            least[nfe] = min(value, least.get(nfe, value))
    panels[0].plot(*zip(*sorted(least.items()), strict=True), color="0.8", lw=6, zorder=0)
    panels[0].set(ylabel="RMS distance from the fine solution")
    panels[0].set(xscale="log", yscale="log", xlabel="network evaluations (NFE)")
    ticks_at(panels[0], sorted({cell["nfe"] for cell in cells}))
    if tables:
        fid_panel(panels[1], tables[0])
    for panel in panels:
        panel.grid(alpha=0.3, which="both")
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=7)
    save_figure(figure, path)
