"""The prompts of a text-to-image run: one caption per image, chosen by hashes."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdia_exp.console import warn
from bdia_exp.errors import UserError, brief, few
from bdia_exp.sources import checkpoints
from bdia_exp.store import archives
from bdia_exp.store.files import atomic

MEMBER = "annotations/captions_val2014.json"  # of COCO's zip of annotations
TEXTS = ("prompt", "text", "caption")  # names of the column of texts, the first one found is used
IMAGES = ("coco_id", "image_id", "image")  # names of the column with the image of each text

Caption = tuple[str, str]  # the id of its image, empty if the file has none; the text


@dataclass(frozen=True)
class Prompts:
    """A sequence of texts. Image k is made from text k, modulo their number.

    `provenance` is stored in records: `source` and `sha256` of the file, `seed` of the choice,
    `count` of the texts and `sequence_sha256` of the lines "IMAGE<tab>TEXT" in their order.
    """

    captions: tuple[Caption, ...] = field(repr=False)
    provenance: Mapping[str, object]

    def __call__(self, seed: int) -> str:
        """The text of the image with this seed."""
        return self._caption(seed)[1]

    def rows(self, seeds: Iterable[int]) -> Iterator[tuple[int, str, str]]:
        """Seed, id of the text's image (empty if it has none) and text, in the order of `seeds`."""
        return ((seed, *self._caption(seed)) for seed in seeds)

    def write(self, path: Path, seeds: Iterable[int]) -> None:
        """Writes `rows` as a CSV that `read` can read. Raises UserError as `files.atomic`."""
        with atomic(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["seed", "image", "prompt"])
            table.writerows(self.rows(seeds))

    def _caption(self, seed: int) -> Caption:
        return self.captions[seed % len(self.captions)]


def of_text(text: str) -> Prompts:
    """The same text for every image; it may be empty."""
    captions = (("", _tidy(text)),)
    return Prompts(captions, {"text": captions[0][1], **_summary(captions)})


def read(source: str, seed: int | None, column: str | None = None) -> Prompts:
    """One caption for every image in a file; `source` is an argument of `checkpoints.locate`.

    The file is one of

    * COCO's caption annotations, `captions_val2014.json`, or their published zip, of which only
      this member is read, in memory;
    * a CSV or TSV with a column prompt, text or caption, or the given `column`. A column coco_id,
      image_id or image has the image of each row; without it every row is a separate image;
    * a `.txt` with one prompt per line.

    With a seed, an image's caption is the one with the smallest sha256 of "SEED:IMAGE:CAPTION", and
    the images are sorted by the sha256 of "SEED:IMAGE". The choice depends neither on the order of
    the file nor on a library's random numbers. With None, the order is that of the file, and the
    first caption of each image is used. Whitespace becomes one space; empty captions are left out.

    With a `column` the file must be a table: every row is an image, and must have a text there.

    Raises UserError if the file cannot be downloaded or read, or has no captions, or a row of a
    `column` has no text.
    """
    path = checkpoints.locate(source)
    readers: dict[str, Callable[[Path], list[Caption]]] = {
        ".json": lambda path: _annotations(archives.contents(path)),
        ".zip": _zipped,
        ".csv": lambda path: _table(_text(path), ",", column),
        ".tsv": lambda path: _table(_text(path), "\t", column),
        ".txt": lambda path: [("", line) for line in _text(path).split("\n")],
    }
    if column is not None:
        readers = {ending: readers[ending] for ending in (".csv", ".tsv")}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is not a file of prompts: give one of {', '.join(readers)}")
    try:
        found = [(_tidy(image), _tidy(text)) for image, text in readers[path.suffix.lower()](path)]
        captions = tuple(caption for caption in found if caption[1])
        captions = captions if column else _choose(captions, seed)
        file = {"source": path.name, "sha256": checkpoints.sha256(path)}
        about = {**file, "seed": seed, **_summary(captions)}
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except UnicodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not captions:
        raise UserError(f"{path} holds no captions: give a file with at least one")
    return Prompts(captions, about)


def cut(tokenizer: Any, texts: Iterable[str], longest: int) -> dict[str, str]:
    """The texts of which a CLIP network of `longest` tokens cannot read all, each with the end that
    is cut off. Prints a warning of their number and the first one."""
    texts = [*dict.fromkeys(texts)]
    tokens = tokenizer(texts, verbose=False).input_ids if texts else []
    # The last token, the mark of a text's end, is kept.
    found = {
        text: tokenizer.decode(own[longest - 1 : -1])
        for text, own in zip(texts, tokens, strict=True)
        if len(own) > longest
    }
    for text, end in [*found.items()][:1]:
        warn(
            f"CLIP reads {longest} tokens of a prompt, and {len(found)} of {len(texts)} have more "
            f"and are cut: the first, {text[:60]!r}…, without its end {end[:200]!r}"
        )
    return found


def _choose(captions: Iterable[Caption], seed: int | None) -> tuple[Caption, ...]:
    """One caption per image, in the order that `read` describes."""
    by_image: dict[str, list[Caption]] = {}
    seen: Counter[str] = Counter()
    for image, text in captions:
        # A text without an image counts as its own image; equal texts get different numbers.
        key = image or f"{text}#{seen[text]}"
        seen[text] += not image
        by_image.setdefault(key, []).append((image, text))
    if seed is None:
        return tuple(group[0] for group in by_image.values())
    return tuple(
        min(by_image[image], key=lambda caption: _hash(f"{seed}:{image}:{caption[1]}"))
        for image in sorted(by_image, key=lambda image: _hash(f"{seed}:{image}"))
    )


def _summary(captions: tuple[Caption, ...]) -> dict[str, object]:
    sequence = "".join(f"{image}\t{text}\n" for image, text in captions)
    return {"count": len(captions), "sequence_sha256": _hash(sequence)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tidy(text: str) -> str:
    return " ".join(text.split())


# -- files; `read` puts the file's name before the messages of these errors ------------------------


def _text(path: Path) -> str:
    file = io.BytesIO(archives.contents(path))
    return io.TextIOWrapper(file, "utf-8-sig").read()  # spreadsheets have a byte order mark


def _zipped(path: Path) -> list[Caption]:
    try:
        with archives.opened(path) as archive:
            if MEMBER not in (names := archive.namelist()):
                holds = few(names) or "nothing"
                raise UserError(f"holds no {MEMBER} but {holds}: give COCO's zip of annotations")
            data = archives.member(archive, MEMBER)
    except OSError as error:
        raise UserError(f"is not a readable zip: fetch it again ({error})") from None
    return _annotations(data)


def _annotations(data: bytes) -> list[Caption]:
    text = data.decode("utf-8-sig")
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("is not valid JSON: fetch it again") from None
    rows = root.get("annotations") if isinstance(root, dict) else None
    if not isinstance(rows, list) or not all(map(_is_caption, rows)):
        shape = '{"annotations": [{"image_id": ..., "caption": ...}]}'
        raise UserError(f"is not of the form of COCO's captions, {shape}")
    return [(str(row["image_id"]), row["caption"]) for row in rows]


def _is_caption(row: object) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("caption"), str)
        and isinstance(row.get("image_id"), (int, str))
    )


def _table(text: str, delimiter: str, wanted: str | None) -> list[Caption]:
    texts = TEXTS if wanted is None else (wanted,)
    # Strict: otherwise a quotation mark without an end would take in the rest of the file.
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        names = {name.strip().lower(): name for name in table.fieldnames or ()}
        column = next((names[name] for name in texts if name in names), None)
        image = next((names[name] for name in IMAGES if name in names), None)
        if column is None:
            known = ", ".join(map(brief, table.fieldnames or ())) or "none"
            raise UserError(f"has no column {', '.join(texts)}; its columns: {known}")
        rows = []
        for row in table:
            if None in row:  # a comma without quotes would cut the caption
                raise UserError(
                    f"has too many cells in line {table.line_num}: quote texts with commas or tabs"
                )
            if wanted and not (row[column] or "").strip():
                raise UserError(
                    f"has no text in the column {column} in line {table.line_num}: write one there"
                )
            rows.append((row.get(image) or "" if image else "", row[column] or ""))
    except csv.Error as error:
        where = f"after line {table.line_num}"
        raise UserError(f"is no table ({error}): correct the quotation marks {where}") from None
    return rows
