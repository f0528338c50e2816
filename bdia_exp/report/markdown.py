"""Numbers and tables as Markdown, and a study's files."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bdia_exp.console import say
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record


class Draw(Protocol):
    def __call__(self, drawn: Mapping[str, Any], path: Path, /) -> None: ...


def publish(root: Path, name: str, drawn: Record, text: str, draw: Draw) -> None:
    """Writes `name`.json, .md and .png into `root`, and prints the text."""
    records.save(root / f"{name}.json", drawn)
    write_text(root / f"{name}.md", text)
    draw(drawn, root / f"{name}.png")
    say(f"\n{text}\nwritten to {root}: {name}.md, {name}.json, {name}.png")


def finite(number: float) -> float | None:
    """The number, or None if it is not finite: JSON has no NaN."""
    return number if math.isfinite(number) else None


def short(number: float | None) -> str:
    """The number with two digits: 0.012 as 1.2e-02; None as a dash."""
    return "–" if number is None else "0" if number == 0 else f"{number:.1e}"


def markdown_table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; the first column is aligned to the left, the others to the right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
