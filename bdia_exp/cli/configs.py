"""From the words after a command to what its verb is asked for, by Hydra's configurations."""

import re
import typing
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import MISSING, fields
from functools import lru_cache, partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bdia_exp.cli.calls import bound, check, group_of, require_own
from bdia_exp.cli.files import (
    CONFIGS,
    about,
    groups,
    groups_of,
    loaded,
    options,
    positional,
    reading,
)
from bdia_exp.cli.words import require_overrides
from bdia_exp.errors import UserError, few, nearest
from bdia_exp.jobs.asked import Choice, Overrides, as_key, hints_of
from bdia_exp.jobs.frozen import thawed
from bdia_exp.overrides import key_of
from bdia_exp.verbs import verb


def composed(command: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of a command, and the name chosen in each group.

    Raises UserError, naming what is nearest, for a key or a choice that does not exist.
    """
    require_overrides(command, overrides)
    try:
        return _composed(command, overrides)
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(_explain(command, overrides, error)) from None


def _composed(command: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The same, with Hydra's own exceptions.

    Reading the YAML files takes most of the time. So the choices of groups are composed once, and
    plain values are set on a copy. If that fails, Hydra composes everything and says why.
    """
    known = groups()
    chosen = tuple(word for word in overrides if word.partition("=")[0] in known)
    try:
        config, choices = _of_choices(command, chosen)
        values = [word for word in overrides if word not in chosen]
        for value in OverridesParser.create().parse_overrides(values):
            if value.type is not OverrideType.CHANGE or value.is_sweep_override():
                raise ValueError("more than a plain value")
            OmegaConf.update(config, value.get_key_element(), value.value(), merge=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        config, choices = _of_choices(command, tuple(overrides))
    OmegaConf.set_struct(config, False)
    return config, choices


def _of_choices(command: str, words: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """A configuration as Hydra composes it, a copy that takes no new keys; and the choices."""
    tree, choices = _hydra(command, words)
    config = OmegaConf.create(deepcopy(tree))
    OmegaConf.set_struct(config, True)
    return config, dict(choices)


@lru_cache(64)
@reading()
def _hydra(command: str, words: tuple[str, ...]) -> tuple[dict, dict[str, str]]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(command, list(words), return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    tree.pop("hydra")
    return tree, {k: v for k, v in choices.items() if not k.startswith("hydra/")}


def _explain(command: str, overrides: list[str], error: Exception) -> str:
    """Hydra's complaint as one sentence that says what to do."""
    for override in overrides:
        key, value = key_of(override), override.partition("=")[2]
        if key in groups_of(command) and value not in options(key):
            return f"{key}={value} does not exist{nearest(value, options(key))}"
        try:
            OverridesParser.create().parse_overrides([override])
        except (HydraException, ValueError):
            return f"{override} cannot be read: put quotes around the value, within the shell's own"
    text = str(error)
    if match := re.search(r"Could not append.*[Aa]n item is already at '([^']+)'", text):
        return f"{match[1]} is a key already: write {match[1]}= without +"
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"there is no key {match[1]!r}{_instead(command, match[1], overrides)}"
    if match := re.search(r"Error merging override (.+)", text):
        return f"{match[1]} is not of the kind of its default; see `bdia-exp {command} --help`"
    if match := re.search(r"You must specify '([^']+)'", text):
        return f"give {match[1]}=: one of {', '.join(options(match[1]))}"
    return re.sub(r"\s+", " ", text).strip()


def _instead(command: str, key: str, overrides: list[str]) -> str:
    """What to write instead of a key that a command does not have."""
    this = verb(command)
    hints = hints_of(this.asks)
    texts = [name for name, kind in hints.items() if Overrides in typing.get_args(kind)]
    if this.composes and texts and key in keys(this.composes, overrides):
        given = next(word for word in overrides if key_of(word) == key)
        return f"; it is one of {this.composes}: give it in {texts[0]}={given!r}"
    return nearest(key, keys(command, overrides))


def keys(command: str, overrides: list[str]) -> list[str]:
    """Every dotted key of the command's configuration under the group choices that are valid."""
    known = groups_of(command)
    chosen = [
        word
        for word in overrides
        if key_of(word) in known and word.partition("=")[2] in options(key_of(word))
    ]
    try:
        config, _ = _composed(command, chosen)
    except (HydraException, OmegaConfBaseException):
        return []

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            yield prefix + str(key)
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return [key for key in walk(OmegaConf.to_container(config), "") if not key.endswith("_")]


def settings(command: str, overrides: list[str], file: str | None = None) -> Any:
    """What a verb is asked for: choices built, everything checked.

    With a `file` that `submit` wrote, nothing is composed: `overrides` change its values.
    """
    plain, choices = values(command, overrides, file)
    require_own(plain)
    asks, named = verb(command).asks, {key_of(word) for word in overrides}
    known = {as_key(field.name): field.name for field in fields(asks)}
    given: dict[str, Any] = {}
    for key, value in plain.items():
        if key not in known and key not in named:
            continue  # a model's file may set what this verb does not take
        name = known.get(key, key)
        given[name] = value
        if key in choices and isinstance(value, dict) and "_target_" in value:
            try:
                made = instantiate(value)
            except (HydraException, OmegaConfBaseException, RecursionError) as error:
                raise _not_built(error) from None
            given[name] = Choice(choices[key], value, bound(made, key))
    first = positional(command)
    if first and given.get(first) == "":
        raise UserError(f"give {first}=; see `bdia-exp {command} --help`")
    check(asks, given)
    for name, hint in hints_of(asks).items():
        if (kind := group_of(hint)) and name in given:
            given[name] = kind(**given[name])
    return asks(**given)


def values(
    command: str, overrides: list[str], file: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every key's value as plain data, and the name chosen in each group."""
    if file is not None:
        return _thawed(command, overrides, file)
    config, choices = composed(command, overrides)
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "the missing key"
        raise UserError(f"give {key}=; see `bdia-exp {command} --help`") from None
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise _not_built(error) from None
    return typing.cast(dict[str, Any], plain), choices


def _thawed(command: str, overrides: list[str], file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a file that `submit` wrote, changed by the overrides."""
    require_overrides(command, overrides)
    plain, choices = thawed(command, file)
    needed = [as_key(one.name) for one in fields(verb(command).asks) if one.default is MISSING]
    if missing := [key for key in needed if key not in plain]:
        raise UserError(f"--config {file} is damaged (it has no {few(missing)}): submit again")
    for word in overrides:
        *path, last = key_of(word).split(".")
        if not path and last in groups_of(command):
            raise UserError(f"{last}= is fixed by --config {file}: change it in `bdia-exp submit`")
        node: Any = plain
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise UserError(f"there is no key {key_of(word)!r} in --config {file}")
        try:
            (value,) = OverridesParser.create().parse_overrides([word])
        except (HydraException, ValueError) as error:
            raise UserError(_explain(command, [word], error)) from None
        node[last] = value.value()
    return plain, choices


def _not_built(error: Exception) -> UserError:
    return UserError(f"the configuration cannot be built: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def call(command: str, overrides: list[str], file: str | None = None) -> Any:
    """Composes (or reads `file`), builds, checks and runs; what the verb returns."""
    this = verb(command)
    extra: dict[str, Any] = {}
    if this.composes:
        extra["compose"] = partial(settings, this.composes)
    if this.submits:
        extra["compose"] = settings
    if this.lists:
        extra["listing"] = listing()
    return this.function(settings(command, overrides, file), **extra)


def listing() -> dict[str, dict[str, Any]]:
    """Each model's title and files (None where the user must give the checkpoint)."""
    found = {}
    for name in options("model"):
        file = CONFIGS / "model" / f"{name}.yaml"
        node = loaded(file)
        found[name] = {
            "about": about(file),
            "checkpoint": OmegaConf.select(node, "model.checkpoint"),
            "reference": node.get("reference"),
        }
    return found
