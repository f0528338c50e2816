"""The texts that a text-to-image run draws from: one caption an image, chosen by hashes."""

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bdia_exp.errors import UserError
from bdia_exp.sources import checkpoints
from bdia_exp.sources.pickles import brief, few
from bdia_exp.store.files import atomic

MEMBER = "annotations/captions_val2014.json"  # of COCO's zip of annotations
TEXTS = ("prompt", "text", "caption")  # columns that may hold the texts, the first one counts
IMAGES = ("coco_id", "image_id", "image")  # columns that may say which image a text is of

Caption = tuple[str, str]  # the id of its image, empty if the file names none; the text


@dataclass(frozen=True)
class Prompts:
    """A sequence of texts. Image k is drawn from text k, modulo their number.

    `provenance` goes into records: `source` and `sha256` of the file, `seed` of the choice,
    `count` of the texts and `sequence_sha256` of the lines "IMAGE<tab>TEXT" in their order.
    """

    captions: tuple[Caption, ...] = field(repr=False)
    provenance: Mapping[str, object]

    def __call__(self, seed: int) -> str:
        """The text that the image of this seed is drawn from."""
        return self._caption(seed)[1]

    def rows(self, seeds: Iterable[int]) -> Iterator[tuple[int, str, str]]:
        """Seed, id of the text's image (empty if it has none) and text, in the order of `seeds`."""
        return ((seed, *self._caption(seed)) for seed in seeds)

    def write(self, path: Path, seeds: Iterable[int]) -> None:
        """Writes `rows` as a CSV that `read` takes again. Raises UserError as `store.atomic`."""
        with atomic(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["seed", "image", "prompt"])
            table.writerows(self.rows(seeds))

    def _caption(self, seed: int) -> Caption:
        return self.captions[seed % len(self.captions)]


def of_text(text: str) -> Prompts:
    """The same text, which may be empty, for every image."""
    captions = (("", _tidy(text)),)
    return Prompts(captions, {"text": captions[0][1], **_summary(captions)})


def read(source: str, seed: int | None) -> Prompts:
    """One caption for every image of a file, which is named as for `checkpoints.locate`.

    The file is one of

    * COCO's caption annotations, `captions_val2014.json`, or the zip in which they are published,
      of which only that member is read, in memory;
    * a CSV or TSV with a column prompt, text or caption. A column coco_id, image_id or image says
      which image a row is of; where there is none, each row is an image of its own;
    * a `.txt` with a prompt a line.

    With a seed an image's caption is the one whose sha256 of "SEED:IMAGE:CAPTION" is least, and the
    images are ordered by the sha256 of "SEED:IMAGE": the choice depends neither on the order of the
    file nor on a library's random numbers. With None it is the file's order, and of each image the
    first caption. Runs of whitespace become one space, and empty captions are left out.

    Raises UserError if the file cannot be had or read, or holds no captions.
    """
    path = checkpoints.locate(source)
    readers: dict[str, Callable[[Path], list[Caption]]] = {
        ".json": lambda path: _annotations(path.read_bytes()),
        ".zip": _zipped,
        ".csv": lambda path: _table(_text(path), ","),
        ".tsv": lambda path: _table(_text(path), "\t"),
        ".txt": lambda path: [("", line) for line in _text(path).split("\n")],
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is none of the files that hold prompts: {', '.join(readers)}")
    try:
        found = [(_tidy(image), _tidy(text)) for image, text in readers[path.suffix.lower()](path)]
        captions = _choose([caption for caption in found if caption[1]], seed)
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


def _choose(captions: Iterable[Caption], seed: int | None) -> tuple[Caption, ...]:
    """One caption of every image, in the order of the choice."""
    by_image: dict[str, list[Caption]] = {}
    seen: Counter[str] = Counter()
    for image, text in captions:
        # A text without an image is one by itself; equal ones are told apart by their count.
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


# -- files; what these raise is completed by the file's name ---------------------------------------


def _text(path: Path) -> str:
    return path.read_text("utf-8-sig")  # spreadsheets begin their files with a mark


def _zipped(path: Path) -> list[Caption]:
    try:
        with zipfile.ZipFile(path) as archive:
            if MEMBER not in (names := archive.namelist()):
                holds = few(names) or "nothing"
                raise UserError(f"holds no {MEMBER} but {holds}: give COCO's zip of annotations")
            data = archive.read(MEMBER)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        raise UserError("is no zip that can be read: fetch it again") from None
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


def _table(text: str, delimiter: str) -> list[Caption]:
    # Strict: a quotation mark that is never closed would swallow the rest of the file.
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        names = {name.strip().lower(): name for name in table.fieldnames or ()}
        column = next((names[name] for name in TEXTS if name in names), None)
        image = next((names[name] for name in IMAGES if name in names), None)
        if column is None:
            known = ", ".join(map(brief, table.fieldnames or ())) or "none"
            raise UserError(f"has no column {', '.join(TEXTS)}; its columns: {known}")
        rows = []
        for row in table:
            if None in row:  # an unquoted comma would cut the caption
                raise UserError(
                    f"has too many cells in line {table.line_num}: quote texts with commas or tabs"
                )
            rows.append((row.get(image) or "" if image else "", row[column] or ""))
    except csv.Error as error:
        where = f"after line {table.line_num}"
        raise UserError(f"is no table ({error}): mend the quotation marks {where}") from None
    return rows
