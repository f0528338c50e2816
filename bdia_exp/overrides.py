"""Overrides as text: values quoted as Hydra's grammar wants them, texts of several taken apart."""

import re
import shlex

from bdia_exp.errors import UserError


def quoted(value: object) -> str:
    """A text in quotes, so that Hydra takes every character of it as it is.

    There a backslash escapes only before a quote, at the end and before `${`.
    """
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(value))
    return "'" + text.replace("${", "\\${") + "'"


def split(key: str, text: str | None) -> list[str]:
    """The overrides in a text, such as "model=sd15 prompt='a cat'".

    Raises UserError, naming the key that the text is of, for a quotation mark that is not closed.
    """
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise UserError(
            f"{key}={text!r} cannot be taken apart ({error}): close its quotes"
        ) from None
