"""Overrides as text: quoted values, several overrides in one text, lists of names and numbers."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from bdia_exp.errors import UserError, brief


def quoted(value: object) -> str:
    """A text in quotes, in which Hydra takes every character literally.

    In Hydra's quotes a backslash escapes only before a quote, at the end and before `${`.
    """
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(value))
    return "'" + text.replace("${", "\\${") + "'"


def literal(word: str) -> str:
    """An override whose value Hydra takes as it is; lists, dicts and quoted values stay."""
    head, equals, value = word.partition("=")
    plain = re.fullmatch(r"""[\w.+-]*|[\[{].*|\$\{.*|'[^']*'|"[^"]*\"""", value, re.DOTALL)
    return word if plain or not equals else f"{head}={quoted(value)}"


def split(key: str, text: str | None, names: int = 0) -> list[str]:
    """The overrides in a text, such as "model=sd15 prompt='a cat'", each of them `literal`.

    The first `names` words are names, not overrides.

    Raises UserError, with the key of the text, for a quotation mark that is not closed and for a
    word that is not key=value.
    """
    try:
        words = [literal(word) for word in shlex.split(text or "")]
    except ValueError as error:
        raise UserError(f"{key}={text!r} cannot be split ({error}): close its quotes") from None
    if lacking := [word for word in words[names:] if "=" not in word]:
        raise UserError(
            f"{key}: {lacking[0]!r} is not of the form key=value; quote a value with spaces, "
            "key='a value'"
        )
    return words


def key_of(word: str) -> str:
    """The key of an override: "nfe" for "nfe=35" and for "+nfe=35"."""
    return word.partition("=")[0].lstrip("+~")


def entries(
    key: str, given: Any, group: str, *, within: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """Converts names in configs/`group` to {label: [overrides]}.

    An entry of `given` is a name ("ddim"), a name with overrides ("bdia_ddim sampler.gamma=0.5"),
    or {label: [overrides]} like the rows of an experiment.
    Overrides can change keys of this group and of the groups in `within`. Raises UserError if there
    is no entry, and for other overrides.
    """
    found: dict[str, list[str]] = {}
    for entry in listed(given):
        if isinstance(entry, list):
            raise UserError(f"{key}: {entry} is a list within the list: give names")
        if isinstance(entry, Mapping):
            found |= {str(label): words_of(key, how) for label, how in entry.items()}
        elif words := split(key, str(entry), names=1):
            found[str(entry)] = [f"{group}={words[0]}", *words[1:]]
    if not found:
        raise UserError(f"give {key}=: one or more names of {group}=, separated by commas")
    for label, words in found.items():
        for word in words:
            if key_of(word).partition(".")[0] not in (group, *within):
                raise UserError(f"{key}: {word!r} of {label!r} cannot be changed, only {group}.…=")
    return found


def words_of(key: str, given: Any) -> list[str]:
    """A list of overrides. Raises UserError, with the key, if it is anything else."""
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise UserError(f"{key}: {given!r} must be a list of overrides, such as [sampler=ddim]")
    return given


def whole_numbers(key: str, given: Any, most: float = math.inf) -> list[int]:
    """Whole numbers, 1 to `most`, as `numbers` reads them. Raises UserError for others."""
    try:
        found = numbers(key, given)
    except UserError:
        found = []
    if not found or any(number < 1 or number != int(number) for number in found):
        raise UserError(f"{key}={_text(given)} must be whole numbers, 1 or more, such as [8,16,32]")
    if max(found) > most:
        raise UserError(f"{key}={_text(given)} must be at most {most}")
    return [int(number) for number in found]


def numbers(key: str, given: Any) -> list[float]:
    """The numbers in a number, a list or a text with commas. Raises UserError for anything else."""
    try:
        found = [float(number) for number in listed(given)]
    except (TypeError, ValueError, OverflowError):
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise UserError(f"{key}={_text(given)} must be numbers, such as {key}=[1,0.5]")
    return list(dict.fromkeys(found))


def exactly(number: float) -> str:
    """The shortest text that means this number and no other: "1" and "0.9999999"."""
    return str(number).removesuffix(".0")


def listed(given: Any) -> list[Any]:
    """The parts of a text with commas, or the entries of a list; one other value is a list, too."""
    if isinstance(given, str):
        return [part for word in given.split(",") if (part := word.strip())]
    if given is None:
        return []
    return [*given] if isinstance(given, Iterable) and not isinstance(given, Mapping) else [given]


def _text(given: Any) -> str:
    return brief(",".join(map(str, given)) if isinstance(given, list) else given)
