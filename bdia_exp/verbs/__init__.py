"""The verbs: one file per verb, with the verb's name. READ `sample` SECOND, after core.py.

A file declares its verb with `VERB = Verb(function, asks)`. Its configuration, with defaults, help
and an example, is configs/NAME.yaml. These files are the only list of verbs. The verbs that take -p
are named in `cli.commands.PARALLEL`, because help is shown without importing their files.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Verb:
    """What the command line must know about a verb."""

    function: Callable[..., Any]
    asks: type
    """The dataclass of the function's first argument; its fields are the verb's keys."""
    composes: str | None = None
    """The verb that this one runs. The function then also takes `compose`, which turns overrides
    into the settings of that verb."""
    submits: tuple[str, ...] = ()
    """The commands that can be its first word. Keys that are not its own belong to that command.
    The function then also takes `compose`, which turns a command and its overrides into settings.
    """
    lists: bool = False
    """Whether the function takes `listing`, the models that can be chosen."""


def names() -> list[str]:
    """Every verb."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def verb(name: str) -> Verb:
    """The `VERB` that a verb's file declares."""
    found: Verb = importlib.import_module(f"{__name__}.{name}").VERB
    return found
