"""The base class of every verb's settings: a dataclass whose fields are the verb's keys.

This module does not import PyTorch: the command line needs it before it imports a verb.
"""

import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, NewType, TypeVar

T = TypeVar("T", bound=Callable)

Source = NewType("Source", str)
"""The name of a file or folder: a path, bundled:FILE, fetch:FILE or hub:ORG/NAME@COMMIT. A name
auto:KIND:NAME is something that is computed from that file, such as auto:canny:NAME, its edges."""
Phrase = NewType("Phrase", str)
"""Text in a natural language: it is never parsed as a number or a list."""
Overrides = NewType("Overrides", str)
"""Several overrides in one string."""


@dataclass(frozen=True)
class Choice(Generic[T]):
    """One choice of a group: its name, its configuration as plain data, and its function."""

    name: str
    config: dict[str, Any]
    make: T


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings of a verb. Raises UserError for a value that the verb cannot use."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises UserError for a wrong value; sub-classes add their own checks."""

    def plain(self) -> dict[str, Any]:
        """All fields as plain data, by key, as a record keeps them."""
        values = {as_key(field.name): getattr(self, field.name) for field in fields(self)}
        return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.config
    return vars(value) if is_dataclass(value) else value


Compose = Callable[[list[str]], Any]
"""A function from overrides to the settings of a verb: a `Sampling` or an `Editing`."""


def as_key(field: str) -> str:
    """The configuration key of a field: the field `class_` has the key `class`."""
    return field.rstrip("_")


@cache
def hints_of(function: Any) -> dict[str, Any]:
    """The types of a function's parameters or of a class's fields, as Python objects."""
    return typing.get_type_hints(function)


def sources_of(asked: Asked) -> dict[str, str]:
    """The files that a verb reads: key → name, for each field of type `Source` that is set."""
    kinds: Any = type(asked)
    named = [key for key, kind in hints_of(kinds).items() if kind in (Source, Source | None)]
    given = {key: getattr(asked, key) for key in named}
    return {key: computed_from(name)[1] for key, name in given.items() if name is not None}


def computed_from(source: str) -> tuple[str | None, str]:
    """The kind and the file of a source that is computed from a file; None and any other name."""
    found = re.fullmatch(r"auto:([^:]*):?(.*)", source, re.DOTALL)
    return (found[1], found[2]) if found else (None, source)


def folder_of(out: str | None, name: str) -> Path:
    """The folder that a verb writes to: `out` if given, else runs/`name`."""
    return Path(out).expanduser() if out else Path("runs") / name
