"""Shards: the images of a run in zips, one for each range of seeds, and what was measured of them.

Shard k has the images of the seeds k·size to (k+1)·size − 1 that the run wants, for example
`shards/0000001000-0000001999.zip`: one uncompressed zip with the names that `images.zip` has inside
and its own `dataset.json`. Its bytes depend on the images alone. `shards.csv` lists the size and
sha256 of each file; a file that is not listed, or has another size, counts as missing.

Beside a scored shard are the float32 features of its images (`….features-DIGEST.npz`). Every metric
can be computed from them, so shards are added without reading an image again; float64 moments would
serve FID alone, and those of Inception in 20 blocks take 670 MB, the features of 1,000 images 8 MB.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdia_exp import dist
from bdia_exp.errors import UserError, brief
from bdia_exp.seeds import Seeds, parse
from bdia_exp.store import archives
from bdia_exp.store.arrays import Arrays
from bdia_exp.store.files import PART, atomic, digest
from bdia_exp.store.images import as_pngs, name_of, table_of
from bdia_exp.store.listings import TABLE
from bdia_exp.store.manifest import Manifest, Stated
from bdia_exp.store.pictures import decode
from bdia_exp.store.records import Record

FOLDER = "shards"
ZIP = ".zip"
MOST_PARTS = 100_000


@dataclass(frozen=True)
class Part:
    """Part `number` of `count` of a run: the shards number, number + count, …, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """A part from a text such as 3/40. Raises UserError if it is none."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]) <= MOST_PARTS:
            raise UserError(
                f"part={brief(text)}: give the number of the part and how many there are, as in "
                "part=3/40; the first is 1/40, the last 40/40"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """The part in names of files."""
        return f"{self.number}of{self.count}"


@dataclass(frozen=True)
class Shard:
    """A range of `size` seeds from `first` on, and those of them that the run wants, in order."""

    first: int
    size: int
    seeds: Seeds

    @property
    def name(self) -> str:
        return f"{self.first:010d}-{self.first + self.size - 1:010d}"


def cut(wanted: Seeds, size: int) -> list[Shard]:
    """The shards of these seeds, in order."""
    found: dict[int, list[range]] = {}
    for whole in sorted(wanted.ranges, key=lambda one: one.start):
        for first in range(whole.start - whole.start % size, whole.stop, size):
            own = range(max(whole.start, first), min(whole.stop, first + size))
            found.setdefault(first, []).append(own)
    return [Shard(first, size, Seeds(ranges)) for first, ranges in sorted(found.items())]


class Shards:
    """The shards of one run. `mine` are those of a `part`, or all.

    Use it in a `with` block while images are written: an unfinished shard is removed at the end.
    """

    def __init__(self, root: Path, wanted: Seeds, size: int, part: Part | None = None):
        self.root, self.wanted, self.size = root / FOLDER, wanted, size
        self.all = cut(wanted, size)
        self.mine = self.all[part.number - 1 :: part.count] if part else self.all
        writer = f"{part.name}.{dist.rank()}" if part else None
        self.manifest = Manifest(root, FOLDER, writer)
        self._by_first = {shard.first: shard for shard in self.all}
        self._open: _Writer | None = None
        self._sound: dict[str, bool] = {}
        self._archive: tuple[Shard, zipfile.ZipFile] | None = None

    @classmethod
    def of_run(cls, root: Path, record: Record) -> "Shards":
        """All shards of the run with this record. Raises UserError if it is not a run of shards."""
        config, seeds = record.get("config", {}), record.get("identity", {}).get("seeds")
        size = config.get("shard")
        if config.get("save") != FOLDER or not isinstance(size, int) or size < 1 or not seeds:
            raise UserError(f"{root} is not a run of `sample` with save=shards")
        return cls(root, parse(seeds), size)

    def of(self, seed: int) -> Shard:
        """The shard that has this seed."""
        return self._by_first[seed - seed % self.size]

    def file(self, shard: Shard, suffix: str = ZIP) -> Path:
        return self.root / f"{shard.name}{suffix}"

    # -- what is there -----------------------------------------------------------------------------

    def missing(self, *suffixes: str, among: Iterable[Shard] | None = None) -> list[Shard]:
        """The shards of which the zip or a file with one of these suffixes is not there.

        Only the sizes are compared with the list, so nothing is read. `among` is `mine` by default.
        """
        stated = self.manifest.stated()
        return [
            shard
            for shard in (self.mine if among is None else among)
            if not all(_has_size(file, stated) for file in self.files(shard, *suffixes))
        ]

    def files(self, shard: Shard, *suffixes: str) -> list[Path]:
        return [self.file(shard, suffix) for suffix in (ZIP, *suffixes)]

    def is_whole(self, file: Path) -> bool:
        """Whether a file has the bytes that the list states. It is read."""
        stated = self.manifest.stated()
        return _has_size(file, stated) and _stated(file) in stated[file.name]

    # -- images ------------------------------------------------------------------------------------

    def read(self, seeds: Sequence[int]) -> Tensor | None:
        """The images of seeds of one shard, uint8 [B, C, H, W]; None if the shard must be made.

        The shard's file is compared with its sha256 when its first images are read.
        """
        shard = self.of(seeds[0])
        if shard.name not in self._sound:
            self._sound[shard.name] = self.is_whole(self.file(shard))
        if not self._sound[shard.name]:
            return None
        if self._archive is None or self._archive[0] != shard:
            self._archive = shard, archives.opened(self.file(shard))
        files = (archives.member(self._archive[1], name_of(seed)) for seed in seeds)
        return torch.stack([decode(file) for file in files])

    def write(self, seeds: Sequence[int], images: Tensor, labels: Tensor | None = None) -> None:
        """Adds images, uint8 [B, C, H, W], to their shard, which must be written in order.

        The shard gets its name, and is listed, when its last image is there.
        """
        shard = self.of(seeds[0])
        if self._open is None or self._open.shard != shard:
            self._drop()
            self._open = _Writer(shard, self.file(shard))
            for file in self.root.glob(f"{shard.name}.*.npz"):  # measured of earlier images
                file.unlink(missing_ok=True)
        self._open.add(seeds, images, labels)
        if self._open.is_full:
            self.manifest.state(self.file(shard).name, self._open.finish())
            self._open, self._sound[shard.name] = None, True

    def remove_old_parts(self) -> None:
        """Deletes the temporary files that killed processes left for `mine`."""
        names = {shard.name for shard in self.mine}
        for part in self.root.glob(f".*{PART}"):
            if part.name[1:].partition(".")[0] in names:
                part.unlink(missing_ok=True)

    def _drop(self) -> None:
        if self._open is not None:
            self._open.drop()
            self._open = None

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()

    # -- what was measured of them -----------------------------------------------------------------

    def keep(self, shard: Shard, suffix: str, arrays: Mapping[str, Any]) -> None:
        """Writes arrays that belong to a shard, and lists their file."""
        file = self.file(shard, suffix)
        with atomic(file) as part:
            with part.open("wb") as out:
                np.savez(out, **arrays)
            stated = _stated(part)
        self.manifest.state(file.name, stated)

    def kept(self, shard: Shard, suffix: str) -> dict[str, np.ndarray]:
        """The arrays that `keep` wrote. Raises OSError if the file has other bytes."""
        file = self.file(shard, suffix)
        if not self.is_whole(file):
            raise OSError(f"{file} is missing or damaged")
        arrays = Arrays(file)
        return {name: arrays[name].whole() for name in arrays.names}

    def merge(self) -> None:
        """Merges the lists of all processes, without the files measured of images made again."""
        stated = self.manifest.stated()
        gone = (name for name in stated if name.endswith(".npz"))
        self.manifest.merge(without=[name for name in gone if not (self.root / name).exists()])

    def put_aside(self, damaged: Sequence[Path]) -> None:
        """Takes damaged files out of the list and adds `.damaged` to their names."""
        for file in damaged:
            with suppress(FileNotFoundError):
                file.replace(f"{file}.damaged")
        self.manifest.merge(without=[file.name for file in damaged])


class _Writer:
    """The zip of one shard while its images arrive. Nobody else sees it before `finish`."""

    def __init__(self, shard: Shard, file: Path):
        self.shard, self._seen = shard, 0
        self._labels: dict[int, int] = {}
        self._stack = ExitStack()
        self._part = self._stack.enter_context(atomic(file))
        self._archive = self._stack.enter_context(zipfile.ZipFile(self._part, "w"))

    def add(self, seeds: Sequence[int], images: Tensor, labels: Tensor | None) -> None:
        for seed, png in zip(seeds, as_pngs(images), strict=True):
            self._archive.writestr(zipfile.ZipInfo(name_of(seed)), png)
        self._seen += len(seeds)
        if labels is not None:
            self._labels |= dict(zip(seeds, labels.tolist(), strict=True))

    @property
    def is_full(self) -> bool:
        return self._seen == len(self.shard.seeds)

    def finish(self) -> Stated:
        if self._labels:
            self._archive.writestr(zipfile.ZipInfo(TABLE), table_of(self._labels))
        self._archive.close()
        stated = _stated(self._part)
        self._stack.close()
        return stated

    def drop(self) -> None:
        with suppress(OSError, UserError):  # the disk may be full
            self._stack.__exit__(_Dropped, _Dropped(), None)


class _Dropped(Exception):  # noqa: N818
    """Ends the block of `atomic`, so that it removes the temporary file."""


def _stated(file: Path) -> Stated:
    return file.stat().st_size, digest(file)


def listed(root: Path, suffix: str) -> list[Path]:
    """The files of all shards of the run in `root` that are listed and have the listed size."""
    stated = Manifest(root, FOLDER).stated()
    files = (root / FOLDER / name for name in sorted(stated) if name.endswith(suffix))
    return [file for file in files if _has_size(file, stated)]


def _has_size(file: Path, stated: Mapping[str, set[Stated]]) -> bool:
    sizes = {size for size, _ in stated.get(file.name, ())}
    with suppress(OSError):
        return bool(sizes) and file.is_file() and file.stat().st_size in sizes
    return False
