"""`export`: images in the forms that other programs read."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from bdia_exp.console import one_of, positive, progress, say
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked
from bdia_exp.jobs.scoring import image_set
from bdia_exp.store.files import atomic, atomic_folder
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import as_pngs, name_of, table_of
from bdia_exp.store.listings import TABLE
from bdia_exp.verbs import Verb

FORMATS = ("png", "zip", "npz")
MOST_DIGITS = 100
"""The most digits of a name that is read as a number."""


@dataclass(frozen=True, kw_only=True)
class Exporting(Asked):
    """A set of images, and the form and place of the copy."""

    images: str
    format: str
    limit: int | None
    batch: int
    out: str

    def check(self) -> None:
        super().check()
        one_of("format", self.format, FORMATS)
        positive("batch", self.batch)


def export(asked: Exporting) -> Path:
    """Writes a copy of a set of images. Returns its path. One batch is in memory at a time."""
    found = image_set(asked.images, asked.limit)
    rows = found.first(asked.limit)
    out = Path(asked.out).expanduser()
    if not out.name.strip("."):
        raise UserError(f"out={asked.out} names no file or folder: give the name of the copy")
    if asked.format != "png" and out.suffix.lower() != f".{asked.format}":
        out = out.with_name(f"{out.name}.{asked.format}")
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there: choose another name")
    write = {"png": _as_folder, "zip": _as_zip, "npz": _as_npz}[asked.format]
    with progress(len(rows), "img") as bar:

        def batches() -> Iterator[tuple[Sequence[int], Tensor]]:
            for start in range(0, len(rows), asked.batch):
                some = rows[start : start + asked.batch]
                yield some, found.read(some)
                bar.update(len(some))

        write(out, found, rows, batches())
    for note in found.remarks(found.transparent):
        say(f"note: {found.path}: {note}")
    say(f"{out}: {len(rows)} images")
    return out


Batches = Iterator[tuple[Sequence[int], Tensor]]


def _as_folder(out: Path, found: ImageSet, rows: range, batches: Batches) -> None:
    with atomic_folder(out) as root:

        def add(name: str, data: bytes) -> None:
            file = root / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)

        _add_pngs(add, found, rows, batches)


def _as_zip(out: Path, found: ImageSet, rows: range, batches: Batches) -> None:
    with atomic(out) as part, zipfile.ZipFile(part, "w") as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name), data)

        _add_pngs(add, found, rows, batches)


def _add_pngs(
    add: Callable[[str, bytes], None], found: ImageSet, rows: range, batches: Batches
) -> None:
    """PNGs in EDM's layout, by the numbers of their names, else by their positions; and labels."""
    numbers = _numbers(found)
    for some, images in batches:
        for row, png in zip(some, as_pngs(images), strict=True):
            add(name_of(numbers[row]), png)
    if found.labels is not None:
        labels = {numbers[row]: found.labels[row] for row in rows}
        add(TABLE, table_of(labels).encode())


def _numbers(found: ImageSet) -> Sequence[int]:
    stems = [Path(name).stem for name in found.names]
    if stems and all(_is_number(stem) for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len({*numbers}) == len(numbers):
            return numbers
    return range(len(found))


def _is_number(stem: str) -> bool:
    return stem.isascii() and stem.isdigit() and len(stem) <= MOST_DIGITS


def _as_npz(out: Path, found: ImageSet, rows: range, batches: Batches) -> None:
    """ADM's form: arr_0, uint8 [N, H, W, 3], and the classes as arr_1, int64 [N]."""
    height, width = found.read([0]).shape[2:]
    form = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), height, width, 3)}
    with atomic(out) as part, zipfile.ZipFile(part, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, form)
            for some, images in batches:
                if images.shape[2:] != (height, width):
                    raise UserError(
                        f"{found.path}: images {some[0]} to {some[-1]} have another size than the "
                        "first: an npz has one size only"
                    )
                pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
                file.write(pixels.contiguous().numpy().tobytes())
        if found.labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                labels = np.array([found.labels[row] for row in rows], dtype=np.int64)
                np.lib.format.write_array(file, labels, (1, 0), allow_pickle=False)


VERB = Verb(export, Exporting)
