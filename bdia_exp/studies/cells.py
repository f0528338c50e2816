"""What the studies share: their keys as lists, and their results on disk."""

import glob
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bdia_exp import results, store
from bdia_exp.console import say
from bdia_exp.errors import UserError
from bdia_exp.jobs.identity import plainly
from bdia_exp.overrides import split
from bdia_exp.results import Record

Compose = Callable[[list[str]], Record]
"""From overrides to the arguments of `sample`."""


class Cells:
    """The results of a study in `root`/cells, a JSON each: what is there is not computed again.

    A result's file is named by the digest of its identity, all that decided it, so studies with
    other settings may share a folder. `made` goes into every result: commit and versions.
    """

    def __init__(self, root: Path):
        self.root, self.made = root, results.provenance()

    def get(self, name: str, identity: Mapping[str, Any], compute: Callable[[], Record]) -> Record:
        """The result of this identity, from the disk or else computed and written."""
        plain = plainly(identity)
        slug = re.sub(r"[^\w.=-]+", "_", name.replace("γ", "gamma"), flags=re.ASCII)
        for file in sorted((self.root / "cells").glob(f"{glob.escape(slug)}-????????.json")):
            found = results.load(file)
            if found and plainly(found.get("identity")) == plain:
                return found
        found = {"name": name, "identity": plain, **self.made, **compute()}
        results.save(self.root / "cells" / f"{slug}-{results.digest(plain)}.json", found)
        return found


class Draw(Protocol):
    def __call__(self, drawn: Mapping[str, Any], path: Path, /) -> None: ...


def publish(root: Path, name: str, drawn: Record, text: str, draw: Draw) -> None:
    """Writes `name`.json, .md and .png, and prints the text."""
    results.save(root / f"{name}.json", drawn)
    store.write_text(root / f"{name}.md", text)
    draw(drawn, root / f"{name}.png")
    say(f"\n{text}\nwritten to {root}: {name}.md, {name}.json, {name}.png")


# -- keys ----------------------------------------------------------------------------------------


def entries(
    key: str, given: Any, group: str, *, within: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """From names of configs/`group` to overrides by label.

    An entry is a name ("ddim"), a name with overrides ("bdia_ddim sampler.gamma=0.5"), or
    {label: [overrides]}, as the rows of an experiment are.
    Overrides may be of the group's keys, and of the groups `within`. Raises UserError if there is
    no entry, and for another override.
    """
    found: dict[str, list[str]] = {}
    for entry in _list(given):
        if isinstance(entry, Mapping):
            found |= {str(label): [*how] for label, how in entry.items()}
        elif words := split(key, str(entry)):
            found[str(entry)] = [f"{group}={words[0]}", *words[1:]]
    if not found:
        raise UserError(f"give {key}=: names that {group}= may have, with commas between them")
    for label, words in found.items():
        for word in words:
            if word.partition("=")[0].lstrip("+~").partition(".")[0] not in (group, *within):
                raise UserError(f"{key}: {word!r} of {label!r} cannot be changed, only {group}.…=")
    return found


def whole_numbers(key: str, given: Any) -> list[int]:
    """Raises UserError unless they are whole numbers from 1 on."""
    try:
        found = numbers(key, given)
    except UserError:
        found = []
    if not found or any(number < 1 or number != int(number) for number in found):
        raise UserError(f"{key}={_text(given)} must be whole numbers, 1 or more, such as [8,16,32]")
    return [int(number) for number in found]


def numbers(key: str, given: Any) -> list[float]:
    """A number, a list of them or a text with commas. Raises UserError for what is none."""
    try:
        found = [float(number) for number in _list(given)]
    except (TypeError, ValueError):
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise UserError(f"{key}={_text(given)} must be numbers, such as {key}=[1,0.5]")
    return list(dict.fromkeys(found))


def _list(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [part for part in given.split(",") if part.strip()]
    if given is None:
        return []
    return [*given] if isinstance(given, Iterable) and not isinstance(given, Mapping) else [given]


def _text(given: Any) -> str:
    return ",".join(map(str, given)) if isinstance(given, list) else str(given)


# -- numbers and tables --------------------------------------------------------------------------


def rms(x: Tensor) -> float:
    """The root of the mean square of all elements, in float64."""
    return float(x.double().square().mean().sqrt())


def finite(number: float) -> float | None:
    """The number, or None where there is none: JSON knows no nan."""
    return number if math.isfinite(number) else None


def short(number: float | None) -> str:
    """Two digits: 0.012 as 1.2e-02."""
    return "–" if number is None else "0" if number == 0 else f"{number:.1e}"


def markdown_table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def last(states: Iterable[Any]) -> Any:
    """The last of at least one; the others are not kept. Without gradients."""
    with torch.inference_mode():
        for state in states:
            found = state
    return found
