"""Errors that a user can correct, and the words of their messages."""

from collections.abc import Iterable


class UserError(Exception):
    """Bad input or something missing. The message is one sentence that says what to do.

    The command line prints the sentence and exits with status 1; no traceback is shown.
    """


KINDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "keys with values",
    type(None): "null",
}
"""The types of configured values, in words."""


def nearest(word: str, known) -> str:
    """`; did you mean 'x' or 'y'?`: the names that contain `word`, then the most similar one.

    A list of all known names if there are none.
    """
    import difflib

    known = sorted({str(name) for name in known})
    if not known:
        return ""
    within = [name for name in known if len(word) > 1 and word in name]
    within.sort(key=lambda name: not name.startswith(word))
    similar = difflib.get_close_matches(word, known, n=1)
    if not (found := list(dict.fromkeys([*within, *similar]))[:12]):
        return f"; known: {', '.join(known)}"
    *first, last = map(repr, found)
    return f"; did you mean {', '.join(first)} or {last}?" if first else f"; did you mean {last}?"


def brief(text: object, most: int = 80) -> str:
    """A text from elsewhere, made safe to print on one line, at most `most` characters."""
    plain = repr(str(text))[1:-1]
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def few(names: Iterable[object]) -> str:
    """The first three names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(brief, names[:3])) + more
