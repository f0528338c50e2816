"""What a verb can be asked for: a dataclass of keys, of which some are choices, files or texts.

No PyTorch here: the command line imports this to read words, before it imports a verb.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Generic, NewType, TypeVar

T = TypeVar("T", bound=Callable)

Source = NewType("Source", str)
"""The name of a file or folder: a path, bundled:FILE, fetch:FILE or hub:ORG/NAME@COMMIT."""
Phrase = NewType("Phrase", str)
"""A text in a natural language: never taken for a number or a list."""
Overrides = NewType("Overrides", str)
"""Several overrides in one text."""


@dataclass(frozen=True)
class Choice(Generic[T]):
    """One choice of a group: its name, its configuration as plain data, and what makes it."""

    name: str
    config: dict[str, Any]
    make: T


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a verb is asked for. Raises UserError for a value that the verb cannot use."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises UserError for a wrong value; sub-classes add their own checks."""

    def plain(self) -> dict[str, Any]:
        """All fields as plain data, by the names of their keys: what a record keeps."""
        values = {as_key(field.name): getattr(self, field.name) for field in fields(self)}
        return {k: v.config if isinstance(v, Choice) else v for k, v in values.items()}


Compose = Callable[[list[str]], Any]
"""From overrides to what a verb is asked for: a `Sampling`, or an `Editing`."""


def as_key(field: str) -> str:
    """The configuration's key of a field: `class` is `class_` in Python."""
    return field.rstrip("_")


@cache
def hints_of(function: Any) -> dict[str, Any]:
    """The types of a function's parameters or of a class's fields, as Python objects."""
    return typing.get_type_hints(function)


def sources_of(asked: Asked) -> dict[str, str]:
    """The files that a verb is asked to read: key → name, of its fields of the type `Source`."""
    kinds: Any = type(asked)
    named = [key for key, kind in hints_of(kinds).items() if kind in (Source, Source | None)]
    return {key: getattr(asked, key) for key in named if getattr(asked, key) is not None}


def folder_of(out: str | None, name: str) -> Path:
    """Where a verb writes: `out`, or runs/`name`."""
    return Path(out).expanduser() if out else Path("runs") / name
