"""Errors that a user can correct."""


class UserError(Exception):
    """Bad input or something missing. The message is one sentence that says what to do.

    The command line prints the sentence and exits with status 1; no traceback is shown.
    """


def nearest(word: str, known) -> str:
    """`; did you mean 'x'?` with the name most similar to `word`, or a list of all known names."""
    import difflib

    known = [str(k) for k in known]
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
