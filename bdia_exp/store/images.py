"""Images on disk. A run can be killed at any moment and continued later.

A run stores image k as `images/{k//1000*1000:06d}/{k:06d}.png`, EDM's layout of sub-folders. A
finished run can be packed into one uncompressed zip with the same names inside. Both contain
`dataset.json`, from which EDM's tools read the labels. `images.csv` lists the sha256 of each image.
"""

import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.store import archives
from bdia_exp.store.files import THREADS, atomic, save_image, write_text
from bdia_exp.store.listings import TABLE
from bdia_exp.store.manifest import Manifest
from bdia_exp.store.pictures import as_tensor, decode, to_pil

LARGEST_DOUBLED, LARGEST_SHOWN = 128, 256  # pixels of an image on a contact sheet


def name_of(seed: int, suffix: str = ".png") -> str:
    """The name of a seed's file, in EDM's layout of sub-folders."""
    return f"{seed - seed % 1000:06d}/{seed:06d}{suffix}"


class _BySeed:
    """The files of one run, one for each seed, such as `images/000000/000017.png`.

    The run's `Manifest` lists them. A file that was damaged, or that another program put there, has
    other bytes than the list says, and counts as missing.
    """

    def __init__(self, root: Path, kind: str, suffix: str):
        self.root, self.suffix = root / kind, suffix
        self.manifest = Manifest(root, kind)

    def name(self, seed: int) -> str:
        return name_of(seed, self.suffix)

    def path(self, seed: int) -> Path:
        return self.root / self.name(seed)

    def load(self, seed: int) -> bytes | None:
        """The bytes that the run wrote for this seed; None if they are not there."""
        return self._listed(seed, self._at(seed))

    def load_all(self, seeds: Iterable[int]) -> list[bytes] | None:
        """The bytes of all these seeds; None if one is missing."""
        with ThreadPoolExecutor(THREADS) as pool:
            found = [*pool.map(self.load, seeds)]
        whole = [data for data in found if data is not None]
        return whole if len(whole) == len(found) else None

    def has(self, seeds: Iterable[int]) -> bool:
        """Whether the files of all these seeds are there. It reads all of them."""
        with ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(lambda seed: self.load(seed) is not None, seeds))

    def store(self, files: Mapping[int, bytes]) -> None:
        """Writes these files, seed → bytes, and lists them."""

        def write(seed: int) -> None:
            if self._at(seed) != files[seed]:
                with atomic(self.path(seed), durable=False) as part:
                    part.write_bytes(files[seed])

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(write, files))
        self.manifest.add(files)

    def remove(self) -> None:
        """Deletes the files and their list."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.manifest.remove()

    def _at(self, seed: int) -> bytes | None:
        """What the file of this seed contains."""
        try:
            return self.path(seed).read_bytes()
        except OSError:
            return None

    def _listed(self, seed: int, data: bytes | None) -> bytes | None:
        return data if data is not None and self.manifest.has(seed, data) else None


class Folder(_BySeed):
    """The images of one run, by seed: PNG files in `images/`, or in `images.zip`."""

    def __init__(self, root: Path):
        super().__init__(root, "images", ".png")
        self.zip = root / "images.zip"

    def load(self, seed: int) -> bytes | None:
        return super().load(seed) or self._listed(seed, self._zipped(seed))

    def write(self, seeds: Sequence[int], images: Tensor, labels: Tensor | None = None) -> None:
        """Stores images, uint8 [B, C, H, W]. Their labels are written by `label`, for all."""
        self.store(dict(zip(seeds, as_pngs(images), strict=True)))

    def read(self, seeds: Sequence[int]) -> Tensor | None:
        """The stored images of these seeds, uint8 [B, C, H, W]; None if one is missing."""
        found = self.load_all(seeds)
        return None if found is None else torch.stack([decode(data) for data in found])

    def label(self, seeds: Sequence[int], labels: Sequence[int]) -> None:
        """Writes dataset.json: the class of every image."""
        write_text(self.root / TABLE, table_of(dict(zip(seeds, labels, strict=True))))

    def pack(self, seeds: Sequence[int]) -> None:
        """Moves the images into one uncompressed zip; its bytes depend only on the images."""
        labels = self.root / TABLE
        with atomic(self.zip) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for seed in sorted(seeds):  # the date of an entry is always 1980
                archive.writestr(zipfile.ZipInfo(self.name(seed)), self._own(seed))
            if labels.exists():
                archive.writestr(zipfile.ZipInfo(TABLE), labels.read_bytes())
        self.__dict__.pop("_archive", None)
        for file in (labels, *map(self.path, seeds)):
            file.unlink(missing_ok=True)
        for folder in (*{self.path(seed).parent for seed in seeds}, self.root):
            _remove_if_empty(folder)

    def unpack(self, seeds: Sequence[int]) -> None:
        """Moves the images out of the zip of an earlier start, if there is one."""
        if self.zip.exists():
            for seed in seeds:
                self.store({seed: self._own(seed)})
            self.zip.unlink()

    def _own(self, seed: int) -> bytes:
        data = self.load(seed)
        if data is None:
            raise UserError(f"{self.path(seed)} was removed or changed: run the same command again")
        return data

    def _zipped(self, seed: int) -> bytes | None:
        with suppress(OSError):
            return archives.member(self._archive, self.name(seed)) if self._archive else None
        return None

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        with suppress(OSError):
            return archives.opened(self.zip)
        return None


class Latents(_BySeed):
    """The end states of one run, by seed, still to be decoded.

    One file per seed, such as `latents/000000/000017.npy`: float64 [C, h, w].
    """

    def __init__(self, root: Path):
        super().__init__(root, "latents", ".npy")

    def write(self, seeds: Sequence[int], states: Tensor) -> None:
        """Stores states, [B, C, h, w]."""
        arrays = states.double().cpu().numpy()
        self.store({seed: _as_npy(array) for seed, array in zip(seeds, arrays, strict=True)})

    def read(self, seeds: Sequence[int]) -> Tensor | None:
        """The states of these seeds, float64 [B, C, h, w]; None if one is missing."""
        found = self.load_all(seeds)
        return None if found is None else torch.stack([_from_npy(data) for data in found])


def _as_npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _from_npy(data: bytes) -> Tensor:
    return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))


def table_of(labels: Mapping[int, int]) -> str:
    """The text of dataset.json for images with these labels: seed → class."""
    return json.dumps({"labels": [[name_of(seed), label] for seed, label in labels.items()]})


def as_pngs(images: Tensor) -> list[bytes]:
    """The PNG files of images, uint8 [B, C, H, W]."""
    with ThreadPoolExecutor(THREADS) as pool:  # compression releases Python's lock
        return [*pool.map(_as_png, images)]


def _as_png(image: Tensor) -> bytes:
    data = io.BytesIO()
    to_pil(image).save(data, format="png")
    return data.getvalue()


def save_sheet(path: Path, images: Sequence[Tensor]) -> None:
    """Writes a contact sheet of images, each uint8 [C, H, W]: of up to 16 in a row, else square."""
    if images:
        columns = len(images) if len(images) <= 16 else math.isqrt(len(images) - 1) + 1
        save_image(path, contact_sheet(torch.stack([*images]), columns))


def contact_sheet(
    images: Tensor, columns: int, *, gap: int = 1, scale: int | None = None
) -> Image.Image:
    """Images, uint8 [N, C, H, W], in rows of `columns`, enlarged `scale` times.

    Images above 256 pixels are averaged down to 256. Without `scale`, images of at most 128 pixels
    are shown at twice their size, and larger ones at their own.
    """
    images = _at_most(images, LARGEST_SHOWN)
    n, c, h, w = images.shape
    scale = scale or (2 if max(h, w) <= LARGEST_DOUBLED else 1)
    rows = -(-n // columns)
    sheet = torch.full((c, rows * (h + gap) - gap, columns * (w + gap) - gap), 255).byte()
    for i, image in enumerate(images):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        sheet[:, y : y + h, x : x + w] = image
    picture = to_pil(sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _at_most(images: Tensor, side: int) -> Tensor:
    """The images, reduced so that their longer side has at most `side` pixels."""
    height, width = images.shape[-2:]
    if (longer := max(height, width)) <= side:
        return images
    size = (max(width * side // longer, 1), max(height * side // longer, 1))
    return torch.stack([as_tensor(to_pil(i).resize(size, Image.Resampling.BOX)) for i in images])


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
