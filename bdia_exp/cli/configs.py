"""From the words after a command to what its verb is asked for, by Hydra's configurations."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache, partial
from itertools import product, takewhile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bdia_exp.errors import UserError, nearest
from bdia_exp.jobs.asked import Choice, Overrides, Phrase, as_key, hints_of
from bdia_exp.overrides import key_of, quoted
from bdia_exp.verbs import verb

HERE = Path(__file__).parents[1]
CONFIGS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"

# -- configurations ------------------------------------------------------------------------------


def options(group: str) -> list[str]:
    """The names that may follow `group=`."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def help_of(file: Path) -> list[str]:
    """The comment at the head of a configuration file, line by line; its first line is a title."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return [text for line in lines if not (text := line[1:].strip()).startswith("@package")]


def about(file: Path) -> str:
    """The title of a configuration file."""
    return (help_of(file) or [""])[0]


def commands() -> list[str]:
    """The names of all commands: those of the configurations at the top."""
    return sorted(f.stem for f in CONFIGS.glob("*.yaml") if not f.stem.startswith("_"))


def text_of(command: str) -> str:
    """A command's configuration without its head, after those that it is built on."""
    text = (CONFIGS / f"{command}.yaml").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    bases = re.findall(r"^  - (_(?!self_)\w+)$", body, re.MULTILINE)
    return "\n".join([*(text_of(base) for base in bases), body])


def groups_of(command: str) -> list[str]:
    """The groups in which a command takes a choice."""
    return re.findall(r"^  - (\w+): ", text_of(command), re.MULTILINE)


def positional(command: str) -> str | None:
    """The key that a command's words without `=` are the value of: the first one left open."""
    found = re.search(r"^(?:  - )?(\w+): \?\?\?", text_of(command), re.MULTILINE)
    return found[1] if found else None


def composed(command: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of a command, and the name chosen in each group.

    Raises UserError, naming what is nearest, for a key or a choice that does not exist.
    """
    try:
        return _composed(command, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(command, overrides, error)) from None


def _composed(command: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The same, with Hydra's own exceptions.

    Reading the YAML files takes most of the time. So the choices of groups are composed once, and
    plain values are set on a copy. If that fails, Hydra composes everything and says why.
    """
    groups = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
    chosen = tuple(word for word in overrides if word.partition("=")[0] in groups)
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
    groups = [folder.name for folder in CONFIGS.iterdir() if folder.is_dir()]
    for override in overrides:
        key, (_, equals, value) = key_of(override), override.partition("=")
        if not equals and not override.startswith("~"):
            return f"{override!r} is not of the form key=value; see `bdia-exp {command} --help`"
        if key in groups and value not in options(key):
            return f"{key}={value} does not exist{nearest(value, options(key))}"
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"there is no key {match[1]!r}{nearest(match[1], keys(command, overrides))}"
    if match := re.search(r"You must specify '([^']+)'", text):
        return f"give {match[1]}=: one of {', '.join(options(match[1]))}"
    return re.sub(r"\s+", " ", text).strip()


def keys(command: str, overrides: list[str]) -> list[str]:
    """Every dotted key of the command's configuration under the group choices that are valid."""
    chosen = [o for o in overrides if o.partition("=")[2] in options(o.partition("=")[0])]
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


def expand(command: str, words: tuple[str, ...], multirun: bool) -> list[list[str]]:
    """The words after a command as lists of overrides: one, or with --multirun one a combination.

    Without --multirun a comma means nothing special: `seeds=0-9,20` is one text.
    """
    key, kinds = positional(command), hints_of(verb(command).asks)
    if key == "images":
        words = tuple(re.sub(r"^image=", "images=", word) for word in words)
    bare = list(takewhile(lambda word: "=" not in word, words))
    if bare and key:
        words = (f"{key}={','.join(bare)}", *words[len(bare) :])
    # Of other keys the last one counts, as in Hydra; of these the first would be lost unseen.
    for name, kind in kinds.items():
        if _may_be(kind, Overrides) and sum(word.startswith(f"{name}=") for word in words) > 1:
            raise UserError(f"{name}= is given twice: give all of them in one text")
    try:
        if not multirun:
            return [[_quoted(word, kinds.get(key_of(word))) for word in words]]
        parsed = OverridesParser.create().parse_overrides(list(words))
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [str(o.input_line)]
            for o in parsed
        ]
    except HydraException as error:
        raise UserError(_explain(command, list(words), error)) from None
    return [list(combination) for combination in product(*choices)]


def _may_be(kind: Any, one: Any) -> bool:
    """Whether a type is this one, or a union with it."""
    return kind is one or one in typing.get_args(kind)


def _quoted(word: str, kind: Any) -> str:
    """A text, a path or a list with commas, put in quotes so that Hydra takes it as it is."""
    _, equals, value = word.partition("=")
    plain = re.fullmatch(r"[\w.+-]*", value) or value[:1] in "[{$" or _in_quotes(value)
    if _may_be(kind, Phrase):
        plain = value == "null" or (_may_be(kind, int) and value.isdecimal())
    return word if not equals or plain else f"{word.partition('=')[0]}={quoted(value)}"


def _in_quotes(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]


# -- calls ---------------------------------------------------------------------------------------


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
    """Compares arguments with a signature: names, and the types of plain values."""
    known, hints = inspect.signature(function).parameters, hints_of(function)
    for key, value in arguments.items():
        if key not in known:
            raise UserError(f"there is no key {prefix + key!r}{nearest(key, map(as_key, known))}")
        hint = hints.get(key)
        union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        allowed = [getattr(kind, "__supertype__", kind) for kind in union]
        plain = [kind for kind in allowed if kind in (int, float, str, bool, type(None))]
        if len(plain) < len(allowed):
            continue
        accepted = {*plain, *([int] if float in plain else [])}
        if type(value) not in accepted:
            kinds = " or ".join("null" if k is type(None) else k.__name__ for k in plain)
            raise UserError(f"{(prefix + key).rstrip('_')}={value} must be {kinds}")


def settings(command: str, overrides: list[str]) -> Any:
    """What a verb is asked for: choices built, everything checked."""
    config, choices = composed(command, overrides)
    asks, named = verb(command).asks, {key_of(word) for word in overrides}
    known = {as_key(field.name): field.name for field in fields(asks)}
    given: dict[str, Any] = {}
    try:
        plain = typing.cast(
            dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        )
        for key, value in plain.items():
            if key not in known and key not in named:
                continue  # a model's file may set what this verb does not take
            name = known.get(key, key)
            given[name] = value
            if isinstance(value, dict) and "_target_" in value:
                given[name] = Choice(choices[key], value, bound(instantiate(config[key]), key))
    except MissingMandatoryValue as error:
        key = error.full_key or "the missing key"
        raise UserError(f"give {key}=; see `bdia-exp {command} --help`") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the configuration cannot be built: {error}") from None
    check(asks, given)
    return asks(**given)


def call(command: str, overrides: list[str]) -> Any:
    """Composes, builds, checks and runs; what the verb returns."""
    this = verb(command)
    extra: dict[str, Any] = {}
    if this.composes:
        extra["compose"] = partial(settings, this.composes)
    if this.lists:
        extra["listing"] = listing()
    return this.function(settings(command, overrides), **extra)


def listing() -> dict[str, dict[str, Any]]:
    """Each model's title and files (None where the user must give the checkpoint)."""
    found = {}
    for name in options("model"):
        file = CONFIGS / "model" / f"{name}.yaml"
        node = OmegaConf.load(file)
        assert isinstance(node, DictConfig)
        missing = OmegaConf.is_missing(node.model, "checkpoint")
        found[name] = {
            "about": about(file),
            "checkpoint": None if missing else node.model.checkpoint,
            "reference": node.get("reference"),
        }
    return found
