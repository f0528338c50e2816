"""Figures of tables and studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from bdia_exp.store.files import atomic, save_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def side_by_side(strips: Mapping[str, Path | Image.Image], path: Path) -> None:
    """Pictures (or image files) below each other, each with its name to the left.

    Missing files are left out.
    """
    from matplotlib.font_manager import findfont

    rows = [
        (name, Image.open(strip) if isinstance(strip, Path) else strip)
        for name, strip in strips.items()
        if isinstance(strip, Image.Image) or strip.exists()
    ]
    font = ImageFont.truetype(findfont("DejaVu Sans"), 13)  # matplotlib has it; it contains γ
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


MARKERS = "osD^vP*X<>"
LINES = ("-", "--", ":")


def style(number: int) -> dict[str, Any]:
    """The style of line `number` of a plot. 30 lines differ in colour and marker, or in dashes."""
    return {
        "color": f"C{number % 10}",
        "marker": MARKERS[(number + number // 10 * 3) % len(MARKERS)],
        "linestyle": LINES[number // 10 % len(LINES)],
        "markersize": 4,
        "linewidth": 1.3,
    }


def convergence(drawn: Mapping[str, Any], path: Path) -> None:
    """Error against steps (top) and NFE (bottom): a column per problem, a line per sampler."""
    problems, config = drawn["problems"], drawn["config"]
    figure = new_figure(4.8 * len(problems) + 2.8, 9)
    panels = figure.subplots(2, len(problems), squeeze=False)
    handles: dict[str, Any] = {}
    for column, problem in zip(panels.T, problems, strict=True):
        for number, row in enumerate(problem["rows"]):
            errors = [float("nan") if e is None else e for e in row["errors"]]
            for panel, places in zip(column, (config["steps"], row["nfe"]), strict=True):
                (handles[row["sampler"]],) = panel.plot(places, errors, **style(number))
        for panel, what in zip(column, ("steps N", "network evaluations (NFE)"), strict=True):
            errors = [e for row in problem["rows"] for e in row["errors"] if e] or [1.0]
            low, high = max(min(errors), problem["floor"]) / 4, min(max(errors) * 2, 1e3)
            panel.axhspan(low / 1e3, problem["floor"], color="0.85", zorder=0)
            panel.set(xscale="log", yscale="log", xlabel=what, ylabel="RMS error of the end state")
            panel.set_ylim(low, high)
            ticks_at(panel, [*config["steps"], 2 * config["steps"][-1]])
        column[0].set_title(problem["name"], fontsize=11)
        _slopes(column[0], config["steps"][0])
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    figure.suptitle(
        f"Error of samplers, solved from σ/α = {config['sigma_max']:g} to "
        f"{config['sigma_min']:g}, z/α compared.\nGrey: below the noise floor of the reference.",
        fontsize=10,
    )
    save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches. Imports matplotlib only when a figure is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=120)


def round_trips(drawn: Mapping[str, Any], path: Path) -> None:
    """Error of round trips against their steps: a row of panels per problem and direction.

    A column per type of the state, a line per method. Fixed point has no error: its panel shows
    the side information.
    """
    states = drawn["config"]["states"]
    rows = [
        (problem["name"], start, [row for row in problem["rows"] if row["start"] == start])
        for problem in drawn["problems"]
        for start in ("image", "noise")
    ]
    methods = list(dict.fromkeys(row["method"] for _, _, found in rows for row in found))
    steps = drawn["config"]["steps"]
    figure = new_figure(4.2 * len(states) + 2.6, 3.3 * len(rows) + 0.8)
    panels = figure.subplots(len(rows), len(states), squeeze=False)
    handles: dict[str, Any] = {}
    for line, (name, start, found) in zip(panels, rows, strict=True):
        for panel, state in zip(line, states, strict=True):
            fixed = state == "fixed"
            for row in found:
                if row["state"] == state:
                    values = [
                        float("nan") if value is None else value
                        for value in row["bits" if fixed else "rms"]
                    ]
                    look = style(methods.index(row["method"]))
                    (handles[row["method"]],) = panel.plot(steps, values, **look)
            panel.set(xscale="log", xlabel="steps N each way")
            if fixed:
                errors = [e for row in found if row["state"] == state for e in row["max"]]
                told = "every bit came back" if not any(errors) else f"error {max(errors):.0e}"
                panel.set_ylabel("side information,\nbits an element and step", fontsize=8)
                panel.set_title(f"{name}, fixed point: {told}", fontsize=9)
            else:
                panel.set(yscale="log")
                panel.set_ylabel("RMS error / RMS of the state", fontsize=8)
                panel.set_title(f"{name}, {state}", fontsize=9)
            way = {"image": "image → noise → image", "noise": "noise → image → noise"}[start]
            panel.set_title(f"{panel.get_title()}\n{way}", fontsize=9)
            ticks_at(panel, steps)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    figure.suptitle(
        f"What a round trip leaves of {drawn['config']['count']} states: RMS error over all "
        "elements, relative to the RMS of the state where it began",
        fontsize=10,
    )
    save_figure(figure, path)


def heat_maps(drawn: Mapping[str, Any], path: Path) -> None:
    """FID over γ and NFE, a column of panels per table: a heat map, and curves against γ.

    The rows of the tables have names γ=NUMBER. The best γ of each NFE has a frame.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    tables = [table for table in drawn["tables"] if table["cells"]]
    figure = new_figure(5.2 * len(tables), 8.0)
    panels = figure.subplots(2, len(tables), squeeze=False)
    for (above, below), table in zip(panels.T, tables, strict=True):
        fids = {(cell["row"], cell["column"]): cell["fid"] for cell in table["cells"]}
        rows = sorted(table["rows"], key=_gamma)
        columns = [c for c in table["columns"] if any((row, c) in fids for row in rows)]
        colours = LogNorm(min(fids.values()), max(fids.values()) * (1 + 1e-9))
        numbers = [[fids.get((row, c), float("nan")) for c in columns] for row in rows]
        picture = above.imshow(numbers, norm=colours, cmap="viridis_r", aspect="auto")
        bar = figure.colorbar(picture, ax=above, label="FID (lower is better)", format="%g")
        bar.ax.yaxis.set_minor_formatter(some)
        above.set(title=table["title"], xlabel="network evaluations (NFE)", ylabel="γ")
        above.set_xticks(range(len(columns)), columns)
        above.set_yticks(range(len(rows)), [f"{_gamma(row):g}" for row in rows])
        for x, column in enumerate(columns):
            there = [(fids[row, column], y) for y, row in enumerate(rows) if (row, column) in fids]
            for fid, y in there:
                bold = (fid, y) == min(there)
                dark = colours(fid) > 0.5
                above.text(
                    x,
                    y,
                    f"{fid:.3g}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    weight="bold" if bold else "normal",
                )
                if bold:
                    box = Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, ec="red", lw=2)
                    above.add_patch(box)
            points = [(_gamma(rows[y]), fid) for fid, y in there]
            points.sort()
            below.plot(*zip(*points, strict=True), label=f"NFE {column}", **style(x))
        below.set(xlabel="γ (0 is the base method)", ylabel="FID", yscale="log")
        below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        below.yaxis.set_minor_formatter(some)
        below.grid(alpha=0.3, which="both")
        below.legend()
    notes = sorted({cell["note"] for table in tables for cell in table["cells"]})
    images = sorted({cell["images"] for table in tables for cell in table["cells"]})
    figure.supxlabel(
        f"{' or '.join(f'{n:,}' for n in images)} images a cell; framed: the best γ of each NFE. "
        f"{'; '.join(notes)}",
        fontsize=8,
    )
    save_figure(figure, path)


def noise_paths(
    times: Sequence[float],
    states: Sequence[Any],
    with_r: Sequence[Any],
    with_l: Sequence[Any],
    path: Path,
) -> None:
    """Along one path of pairs (x, v): the state, ε with K = L, and ε with K = R, against time."""
    figure = new_figure(11, 3.4)
    named = {"state": states, "ε, K = L": with_l, "ε, K = R": with_r}
    for panel, (title, pairs) in zip(figure.subplots(1, 3), named.items(), strict=True):
        for number, name in enumerate(("x", "v")):
            panel.plot(times, [float(pair[number]) for pair in pairs], label=name, linewidth=1.3)
        panel.set(xscale="log", xlabel="time, from noise (right) to data", title=title)
        panel.grid(alpha=0.3)
        panel.legend()
    save_figure(figure, path)


def _slopes(panel: Any, at: float) -> None:
    """Draws the slopes of the orders 1, 2 and 4 in the lower left corner."""
    low, high = panel.get_ylim()
    start = min(low * 30, high)
    for power in (1, 2, 4):
        end = start / 2**power
        panel.plot([at, 2 * at], [start, end], color="0.5", linewidth=1)
        panel.text(2.08 * at, end, f"order {power}", color="0.4", fontsize=7, va="center")


def some(value: float, _: float) -> str:
    """Labels for a few of the minor ticks of a logarithmic axis."""
    return f"{value:g}" if f"{value:e}"[0] in "2357" else ""


def _gamma(row: str) -> float:
    return float(row.partition("=")[2])


def ticks_at(panel: Any, places: Sequence[int]) -> None:
    """Labels only these numbers on a logarithmic axis, and draws a light grid."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    panel.xaxis.set_major_locator(FixedLocator(list(places)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.grid(alpha=0.3)
