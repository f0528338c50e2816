"""Standard output and error in encodings that do not have every character."""

import codecs
import io
import sys

ASCII = {
    **{"α": "alpha", "γ": "gamma", "ε": "eps", "λ": "lambda", "ρ": "rho", "σ": "sigma"},
    **{"θ": "theta", "τ": "tau", "Δ": "Delta", "±": "+-", "×": "x", "·": "*", "−": "-", "–": "-"},
    **{"≤": "<=", "≥": ">=", "→": "->", "…": "...", "∞": "inf", "√": "sqrt", "ᴱ": "^E", "’": "'"},
}
"""What is written for a character that the encoding of a terminal or a log does not have."""


def write_any_text() -> None:
    """Lets standard output and error write every text in any encoding: γ as gamma in latin-1."""
    codecs.register_error("bdia_exp", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="bdia_exp")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (ASCII.get(sign) or ascii(sign)[1:-1] for sign in signs)
    return "".join(plain), error.end
