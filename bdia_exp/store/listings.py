"""What a folder or zip of images has: the pictures, what was left out, and the labels."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bdia_exp.errors import brief
from bdia_exp.store.files import json_object

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""In lower or upper case: what is read as a picture."""

OTHER_PICTURES = re.compile(
    r"\.(apng|arw|avif|cr[23]|dds|dib|dng|eps|exr|hdr|hei[cf]|icns|ico|j2k|jp2|jpe|jxl|nef|orf|pbm"
    r"|pcx|pgm|pnm|ppm|ps|psd|qoi|raf|raw|rw2|sgi|svg|tga|xcf)",
    re.IGNORECASE,
)
"""Pictures that are not read; they are named when they are left out."""

NUMBER = re.compile(r"(?<![^/])[0-9]+(?=/|\.[^./]*\Z)")
"""A number that is the whole name of a folder, or of a file without its suffix."""

TABLE = "dataset.json"


@dataclass
class Listing:
    """The names of the pictures in the order of `_place`, and sentences about what was left out."""

    pictures: list[str]
    notes: list[str] = field(default_factory=list)
    table: bool = False
    """Whether there is a `dataset.json`."""


def is_picture(name: str) -> bool:
    """Whether the name is that of a picture that can be read."""
    return Path(name).suffix.lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a part of the path begins with a dot, or is macOS's folder in zips."""
    parts = re.split(r"[/\\]", name)
    return any(part == "__MACOSX" or re.match(r"\.+[^.]", part) for part in parts)


def of_names(names: Iterable[str]) -> Listing:
    """The pictures among the names of a set, without what is hidden."""
    # A zip also names its folders; their names end with a slash.
    shown = (name for name in names if not (is_hidden(name) or name.endswith("/")))
    seen = sorted(shown, key=_place)
    others = [name for name in seen if OTHER_PICTURES.fullmatch(Path(name).suffix)]
    found = Listing([name for name in seen if is_picture(name)], table=TABLE in seen)
    if others:
        found.notes.append(_left_out(others, "pictures of other formats", "convert them to PNG"))
    return found


def _place(name: str) -> tuple[str, str]:
    """What names are sorted by: their text, in which each NUMBER has its length before it.

    So 999000/999000.png comes before 1000000/1000000.png.
    """

    def by_value(found: re.Match[str]) -> str:
        digits = found[0].lstrip("0")
        return f"{len(digits):05d}{digits}"

    return NUMBER.sub(by_value, name), name


def of_folder(root: Path) -> Listing:
    """The pictures in a folder and all its sub-folders. Raises OSError if one cannot be read."""
    names, links = [], []
    for folder, inner, files in os.walk(root, onerror=_raise):
        here = Path(folder).relative_to(root)
        names += [str(here / name) for name in files]
        inner[:] = [name for name in inner if not is_hidden(name)]
        links += [str(here / name) for name in inner if (root / here / name).is_symlink()]
    found = of_names(names)
    if links:
        found.notes.append(_left_out(sorted(links), "linked folders", "give each as a set"))
    return found


def labels(data: bytes, names: Sequence[str]) -> tuple[list[int] | None, list[str]]:
    """The classes of the images `names` in EDM's dataset.json, and sentences about it.

    The classes are None if it has none, or not one for every image. Raises ValueError if it is not
    of the form {"labels": [["NAME.png", class], …]}, where "labels" may be absent or null.
    """
    try:
        rows = json_object(data).get("labels") or []
        rows = list(rows.items() if isinstance(rows, dict) else rows)
        if not all(map(_is_row, rows)):
            raise ValueError
    except (ValueError, TypeError):
        form = '{"labels": [["NAME.png", class], …]}, in UTF-8, where a class is a whole number'
        raise ValueError(f"not of the form {form}: correct or remove it") from None
    known = dict(rows)
    absent = [name for name in names if name not in known]
    if not absent:
        return [known[name] for name in names], []
    if known:
        text = f"{TABLE} has no label for {len(absent)} of {len(names)} images, such as "
        return None, [f"{text}{brief(absent[0])}: no labels are used"]
    return None, []


def _is_row(row: object) -> bool:
    if not (isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], str)):
        return False
    return type(row[1]) is int and abs(row[1]) < 2**63


def _left_out(names: Sequence[str], what: str, advice: str) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    some = ", ".join(map(brief, names[:2]))
    return f"{what} were left out: {len(names)} ({some}{more}); {advice}"


def _raise(error: OSError) -> None:
    raise error
