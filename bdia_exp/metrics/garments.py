"""What a prompt for `mini_sd` asks for: one of the ten garments of Fashion-MNIST, and a colour."""

import re

from bdia_exp.metrics.colours import TINTS

NAMES = (
    ("t-shirt", "top"),
    ("trousers", "pants"),
    ("pullover", "sweater"),
    ("dress",),
    ("coat",),
    ("sandal",),
    ("shirt",),
    ("sneaker",),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
"""The names of each class, by its number."""
CLASS_OF = {name.split()[-1]: k for k, names in enumerate(NAMES) for name in names}
COLOUR_OF = {name: k for k, name in enumerate(TINTS)}
NOTHING = -1


def asked_of(prompt: str) -> tuple[int, int]:
    """The class and the colour (its place in `TINTS`) that a prompt names.

    NOTHING for what it does not name, or names twice.
    """
    words = re.findall(r"[a-z]+(?:-shirt)?", prompt.lower())
    return _only(CLASS_OF, words), _only(COLOUR_OF, words)


def _only(known: dict[str, int], words: list[str]) -> int:
    found = {known[word] for word in words if word in known}
    return found.pop() if len(found) == 1 else NOTHING
