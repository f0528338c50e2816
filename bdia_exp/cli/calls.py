"""Calls in configurations: which functions may be called, and with which arguments."""

import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache, partial
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from bdia_exp.cli.files import CONFIGS, is_global, loaded
from bdia_exp.errors import KINDS, UserError, brief, few, nearest
from bdia_exp.jobs.asked import Choice, as_key, hints_of

ALIASES: dict[type, type] = {DictConfig: dict, ListConfig: list}
"""Hydra's own containers, which are checked as plain ones."""

# -- which functions -----------------------------------------------------------------------------


def require_own(config: dict[str, Any]) -> None:
    """Raises UserError unless a configuration calls only what the files of configs/ call there.

    A `_target_` must be named by one of these files at the same place (`sampler.rule`), and must be
    a function that a module of this package defines. Nothing else is ever imported or called.
    """
    for path, node in nodes(config):
        for key in node:
            if key in ("_args_", "_recursive_", "_convert_"):
                raise UserError(f"{path}.{key}=: only _target_ and _partial_ may be in a call")
        if "_target_" not in node:
            continue
        target = node["_target_"]
        if node.get("_partial_") is not True:
            raise UserError(f"{path}._partial_ must be true: a configuration calls nothing itself")
        known = targets(path.partition(".")[0]).get(path, set())
        if not (isinstance(target, str) and target in known and _is_ours(target)):
            names = few(sorted(known)) or "nothing"
            raise UserError(
                f"{path}._target_={target} is not a function that configs/ calls there ({names}), "
                "and no other is called"
            )


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every dict in plain data, with its dotted path; a place in a list counts as a key."""
    if isinstance(node, dict):
        yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from nodes(value, f"{path}.{key}".lstrip("."))


@cache
def targets(group: str) -> dict[str, set[str]]:
    """The functions that the files of a group call: place in the configuration → names."""
    found: dict[str, set[str]] = {}
    for file in sorted((CONFIGS / group).glob("*.yaml")):
        plain = OmegaConf.to_container(loaded(file), resolve=False)
        for path, node in nodes(plain, "" if is_global(file) else group):
            if "_target_" in node:
                found.setdefault(path, set()).add(node["_target_"])
    return found


def _is_ours(target: str) -> bool:
    """Whether a module of this package defines a function or class of this full name."""
    module, _, name = target.rpartition(".")
    if not module.startswith("bdia_exp."):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return getattr(found, "__module__", None) == module


# -- which arguments -----------------------------------------------------------------------------


def bound(function: Any, name: str) -> Any:
    """Checks the arguments already given to a partial, and to those within, before anything runs.

    What is not a partial is returned as it is, and so is the function of one without arguments.
    Raises UserError for a name that the function does not have or a value of another type.
    """
    if not isinstance(function, partial):
        return function
    given = {key: bound(value, f"{name}.{key}") for key, value in function.keywords.items()}
    check(function.func, given, f"{name}.")
    return partial(function.func, **given) if given else function.func


def check(function: Callable, arguments: dict[str, Any], prefix: str = "") -> None:
    """Compares arguments with a signature: names, types, and that numbers are finite.

    An infinite number is accepted only where the default is infinite. Raises UserError.
    """
    parameters, hints = inspect.signature(function).parameters, hints_of(function)
    known = {key: p for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    for key, value in arguments.items():
        name = prefix + as_key(key)
        if key not in known:
            raise UserError(f"there is no key {name!r}{nearest(key, map(as_key, known))}")
        if (kind := group_of(hints.get(key))) and isinstance(value, dict):
            check(kind, value, f"{name}.")
            continue
        if wrong := _mismatch(hints.get(key), value):
            raise UserError(f"{name}={brief(value)} {wrong}")
        if isinstance(value, float) and not math.isfinite(value):
            default = known[key].default
            if math.isnan(value) or not (isinstance(default, float) and math.isinf(default)):
                raise UserError(f"{name}={value} must be a finite number")


def group_of(hint: Any) -> type | None:
    """The dataclass of a key that has keys of its own (`fit.images`); None for another key."""
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _mismatch(hint: Any, value: Any) -> str | None:
    """What a value of this type hint must be; None if it is, or if the hint is not checked."""
    if group_of(hint):
        return "cannot be given as a value: only its own keys can be changed"
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [
        getattr(kind, "__supertype__", typing.get_origin(kind) or kind)
        for kind in (typing.get_args(hint) if union else (hint,))
    ]
    if Choice in kinds:
        return None if isinstance(value, Choice) else "must be a name of this group"
    if any(kind is typing.get_origin(Callable[..., Any]) for kind in kinds):
        if callable(value) or (value is None and type(None) in kinds):
            return None
        return "cannot be given as a value: only its own keys can be changed"
    if any(kind not in KINDS for kind in kinds):
        return None
    accepted = {*kinds, *([int] if float in kinds else [])}
    if ALIASES.get(type(value), type(value)) in accepted:
        return None
    return f"must be {' or '.join(KINDS[kind] for kind in kinds)}"
