"""The words after a command, as overrides that Hydra takes literally."""

import hashlib
import os
import re
import typing
from itertools import product, takewhile
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bdia_exp.cli.files import groups_of, positional
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Overrides, Phrase, as_key, hints_of
from bdia_exp.overrides import key_of, literal, quoted
from bdia_exp.verbs import verb

KEY = re.compile(r"\+{0,2}[A-Za-z_]\w*(\.\w+)*", re.ASCII)
"""What stands before the `=` of an override."""
TEXT = r"""'[^']*'|"[^"]*\""""
TEXTS = re.compile(rf"\s*(?:{TEXT})(?:\s*,\s*(?:{TEXT}))+\s*")
"""Several texts in quotes, separated by commas."""
FILES = (".npz", ".json")
"""Endings of `out=` where it names a file, not a folder."""
LONGEST = 100
"""Characters of the name of a combination's folder."""


def require_overrides(command: str, words: list[str]) -> None:
    """Raises UserError for a word that is not key=value, and for Hydra's own settings."""
    for place, word in enumerate(words):
        head, equals, _ = word.partition("=")
        key = key_of(word)
        if "\0" in word or not _is_utf8(word):
            raise UserError(f"{key}= holds a NUL or bytes that are not UTF-8: give plain text")
        if head.startswith("~"):
            raise UserError(
                f"{word}: a key cannot be removed; leave it out for its default, or give {key}=null"
            )
        if re.match(r"hydra\b", key):
            raise UserError(
                f"{head}=: Hydra's own settings have no effect here; out= sets the folder, and "
                "configurations are only read from configs/"
            )
        if not equals:
            raise UserError(_not_a_pair(command, words, place))
        if not KEY.fullmatch(head):
            raise UserError(f"there is no key {head!r}; see `bdia-exp {command} --help`")


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_a_pair(command: str, words: list[str], place: int) -> str:
    """Why a word has no `=`: it is often the rest of a text that was not quoted."""
    told = f"{words[place]!r} is not of the form key=value"
    first = positional(command)
    if first and first not in map(key_of, words):
        return f"{told}; put it first, or write {first}={words[place]}"
    if place:
        rest = takewhile(lambda word: "=" not in word, words[place:])
        key, _, value = words[place - 1].partition("=")
        value = value[1:] if value[:1] in ("'", '"') else value
        value = value[:-1] if value[-1:] in ("'", '"') else value
        text = " ".join([value, *rest])
        return f"{told}; if it belongs to {key}=, quote the whole text: {key}='{text}'"
    return f"{told}; see `bdia-exp {command} --help`"


def expand(command: str, words: tuple[str, ...], multirun: bool) -> list[list[str]]:
    """The words after a command as lists of overrides: one, or with --multirun one a combination.

    Without --multirun a comma means nothing special: `seeds=0-9,20` is one text. With it, commas
    separate the values of a sweep, but those in a text or in several overrides do not: their sweep
    is in quotes, `prompt="'a cat','a dog'"`. Each combination has its own folder below `out=`.
    """
    kinds = hints_of(verb(command).asks)
    if verb(command).submits:
        if multirun:
            raise UserError(f"-m is not for {command}: give one combination at a time")
        own, inner = _divided(command, words, {*map(as_key, kinds), *groups_of(command)})
        return [[*(_override(word, kinds) for word in own), inner]]
    given = _with_keys(command, [_decoded(word) for word in words], kinds)
    # Of other keys the last one counts, as in Hydra; of these the first would be lost unseen.
    for name, kind in kinds.items():
        if _may_be(kind, Overrides) and sum(word.startswith(f"{name}=") for word in given) > 1:
            raise UserError(f"{name}= is given twice: give all of them in one text")
    if not multirun:
        return [[_override(word, kinds) for word in given]]
    choices = [_choices(word, kinds) for word in given]
    return _in_own_folders([list(one) for one in product(*choices)], choices)


def _divided(command: str, words: tuple[str, ...], keys: set[str]) -> tuple[list[str], str]:
    """A submitting verb's own words, and one override with the command that it submits."""
    name, names = (words or ("",))[0], verb(command).submits
    if name not in names:
        raise UserError(f"the first word after {command} must be {' or '.join(names)}")
    rest = [_decoded(word) for word in words[1:]]
    own = [word for word in rest if "=" in word and key_of(word).partition(".")[0] in keys]
    (inner,) = expand(name, tuple(word for word in rest if word not in own), multirun=False)
    return own, f"{positional(command)}=[{','.join(map(quoted, [name, *inner]))}]"


def _decoded(word: str) -> str:
    """A word as UTF-8, also where the locale is C or POSIX and Python kept its bytes."""
    try:
        return word if _is_utf8(word) else os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


def _with_keys(command: str, words: list[str], kinds: dict[str, Any]) -> list[str]:
    """The same words, with the key of those at the beginning that have none."""
    key, known = positional(command), {*map(as_key, kinds), *groups_of(command)}

    def is_bare(word: str) -> bool:
        head, equals, _ = word.partition("=")
        if not equals or key_of(word).partition(".")[0] in known:
            return not equals
        return not KEY.fullmatch(head) or os.path.lexists(word)  # a path such as runs/nfe=35

    if key == "images":
        words = [re.sub(r"^image=", "images=", word) for word in words]
    bare = list(takewhile(is_bare, words)) if key else []
    if key == "images" and len(bare) > 1:
        raise UserError(
            f"{bare[1]!r} is a second name, and images= takes one: quote a name that has spaces, "
            f"{' '.join(bare)!r}"
        )
    if not bare:
        return words
    is_list = _may_be(kinds.get(key or ""), list)
    value = f"[{','.join(map(quoted, bare))}]" if is_list else ",".join(bare)
    return [f"{key}={value}", *words[len(bare) :]]


def _may_be(kind: Any, one: Any) -> bool:
    """Whether a type is this one, or a union with it."""
    return kind is one or one in typing.get_args(kind)


def _kind(word: str, kinds: dict[str, Any]) -> Any:
    return kinds.get(key_of(word), kinds.get(f"{key_of(word)}_"))


def _override(word: str, kinds: dict[str, Any]) -> str:
    """A word as an override that Hydra reads as it was typed."""
    head, equals, value = word.partition("=")
    kind = _kind(word, kinds)
    if not equals or value == "null":
        return word
    if "${" in value and not (_may_be(kind, Phrase) or _may_be(kind, Overrides)):
        return word  # made from other keys: out=runs/${nfe}
    if _may_be(kind, Phrase) or _may_be(kind, Overrides):
        is_class = _may_be(kind, int) and value.isdecimal()
        return word if is_class else f"{head}={quoted(value)}"
    if value[:1] == "[" and _may_be(kind, list):
        return f"{head}={_list(word, value)}"
    types = {getattr(one, "__supertype__", one) for one in (typing.get_args(kind) or (kind,))}
    if types - {type(None)} == {str} and value[:1] not in ("'", '"'):
        return f"{head}={quoted(value)}"  # also out=2024, which is no number
    return literal(word)


def _list(word: str, value: str) -> str:
    """A list for Hydra from one in YAML, as `--help` prints it."""
    try:
        found = OmegaConf.to_container(OmegaConf.create(value))
    except (OmegaConfBaseException, YAMLError):
        found = None
    if not isinstance(found, list):
        raise UserError(f"{word} is not a list: write [a, b], and quote an item that has commas")
    if not all(isinstance(one, str) for one in found):
        return value
    return f"[{','.join(map(quoted, found))}]"


# -- several runs --------------------------------------------------------------------------------


def _choices(word: str, kinds: dict[str, Any]) -> list[str]:
    """The overrides of a word of --multirun, one for each value of its sweep."""
    head, equals, value = word.partition("=")
    kind = _kind(word, kinds)
    if _may_be(kind, Phrase) or _may_be(kind, Overrides):
        if TEXTS.fullmatch(value):
            return [f"{head}={quoted(text[1:-1])}" for text in re.findall(TEXT, value)]
        if not (_may_be(kind, int) and re.fullmatch(r"\d+(,\d+)*", value)):
            return [_override(word, kinds)]
    if not equals or not re.search(r"""[][(){}'"\\]""", value):
        return [_override(f"{head}{equals}{one.strip()}", kinds) for one in value.split(",")]
    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return [_override(word, kinds)]
    if not parsed.is_sweep_override():
        return [_override(word, kinds)]
    return [f"{parsed.get_key_element()}={one}" for one in parsed.sweep_string_iterator()]


def _in_own_folders(runs: list[list[str]], choices: list[list[str]]) -> list[list[str]]:
    """The same runs; if they share one `out=`, each gets a folder below it, named by its values.

    With an `out=` that is made from other keys, such as runs/${nfe}, the user names the folders.
    """
    outs = [i for i, words in enumerate(choices) if key_of(words[0]) == "out"]
    if len(runs) < 2 or not outs or len(choices[outs[-1]]) > 1:
        return runs
    swept = [i for i, words in enumerate(choices) if len(words) > 1]
    for run in runs:
        value = run[outs[-1]].partition("=")[2].strip("'")
        if value not in ("", "null") and "${" not in value:
            path = _below(Path(value), ",".join(run[i] for i in swept))
            run[outs[-1]] = f"out={quoted(path)}"
    return runs


def _below(out: Path, combination: str) -> Path:
    """The place of one combination: OUT/NAME, or OUT/NAME.npz where `out` is such a file."""
    name = re.sub(r"[^\w.,=+-]+", "_", combination.replace("'", ""), flags=re.ASCII)
    if name != combination or len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(combination.encode()).hexdigest()[:8]}"
    if out.suffix in FILES:
        return out.with_suffix("") / f"{name}{out.suffix}"
    return out / name
