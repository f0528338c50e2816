"""Sets of images to read: folders, zips, npz files, single images, and the folders of runs."""

import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.store.files import as_tensor, decode, to_pil

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
THREADS = min(8, os.cpu_count() or 1)  # to decode images; PIL releases Python's lock


def is_image_set(path: Path) -> bool:
    """Whether `path` can contain images: a folder, a zip, or an npz that is not statistics."""
    if path.suffix != ".npz":
        return path.is_dir() or zipfile.is_zipfile(path)
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else nullcontext() as archive:
        return archive is not None and "mu.npy" not in archive.namelist()


class ImageSet:
    """A set of images: a run's folder, a folder, a zip, an npz, or a single image.

    An npz has uint8 [N, H, W, C] or [N, H, W] under `images` (or as its first array), and
    optionally `labels`. Folders and zips are read with all sub-folders, sorted by name.

    With `fit`, a shape (C, H, W), images of another shape are cropped at the centre, resized
    (Lanczos) and converted to grey or RGB. Raises UserError if there are no readable images.
    """

    def __init__(self, source: str | Path, fit: tuple[int, int, int] | None = None):
        path = Path(source).expanduser()
        self.fit = fit
        if (path / "images.zip").exists():
            path = path / "images.zip"
        elif (path / "images").is_dir():
            path = path / "images"
        self.path = path
        self.labels: list[int] | None = None
        self._array: np.ndarray | None = None
        self._archive: zipfile.ZipFile | None = None
        self._names: list[str] = []
        if not path.exists():
            raise UserError(
                f"{source} does not exist: give a run, a folder, a zip, an npz or an image"
            )
        try:
            if path.is_file() and path.suffix.lower() in SUFFIXES:
                self.path, self._names = path.parent, [path.name]
            elif path.is_dir():
                self._open_names([str(f.relative_to(path)) for f in path.rglob("*")])
            elif zipfile.is_zipfile(path) and path.suffix != ".npz":
                self._archive = zipfile.ZipFile(path)
                self._open_names(self._archive.namelist())
            else:
                self._open_npz()
        except (zipfile.BadZipFile, ValueError, TypeError, KeyError, EOFError) as error:
            raise UserError(f"{path} cannot be read as images: {error}") from None
        if not len(self):
            raise UserError(f"{path} holds no images")

    def _open_names(self, names: Iterable[str]) -> None:
        names = sorted(names)
        self._names = [n for n in names if Path(n).suffix.lower() in SUFFIXES]
        if "dataset.json" in names:
            rows = dict(json.loads(self._bytes("dataset.json")).get("labels") or [])
            if all(name in rows for name in self._names):
                self.labels = [int(rows[name]) for name in self._names]

    def _open_npz(self) -> None:
        with np.load(self.path, allow_pickle=False) as data:
            array = data["images"] if "images" in data else data[data.files[0]]
            if array.ndim == 3:
                array = array[..., None]
            if array.dtype != np.uint8 or array.ndim != 4:
                raise ValueError(f"{array.dtype} {array.shape} is not uint8 [N, H, W, C]")
            self._array = array
            if "labels" in data:
                self.labels = [int(label) for label in data["labels"]]
                if len(self.labels) != len(array):
                    raise ValueError(f"{len(array)} images and {len(self.labels)} labels")

    def first(self, limit: int | None) -> range:
        """The positions of the first `limit` images, or all. Raises UserError if out of range."""
        if limit is not None and not 1 <= limit <= len(self):
            raise UserError(f"limit={limit} must be 1 to {len(self)}, the images in {self.path}")
        return range(limit or len(self))

    def __len__(self) -> int:
        return len(self._names) if self._array is None else len(self._array)

    @property
    def names(self) -> list[str]:
        """The images' file names within the set; empty for an npz."""
        return self._names

    def _bytes(self, name: str) -> bytes:
        if self._archive is not None:
            return self._archive.read(name)
        return (self.path / name).read_bytes()

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at these positions, uint8 [B, C, H, W]. Raises UserError if sizes differ."""
        if self._array is not None:
            found = torch.from_numpy(self._array[list(rows)]).permute(0, 3, 1, 2)
            return torch.stack([self._fitted(image) for image in found]) if self.fit else found
        images = self.read_each(rows, upright=bool(self.fit))
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                size, first = (tuple(i.shape) for i in (image, images[0]))
                raise UserError(
                    f"{self.path}: {self._names[row]} is {size}, others are {first}: one size "
                    "only, unless resize= makes them one"
                )
        return torch.stack(images)

    def read_each(self, rows: Sequence[int], *, upright: bool = True) -> list[Tensor]:
        """The images at these positions, each uint8 [C, H, W] of any size.

        With `upright` they are rotated by their EXIF orientation.
        """
        if self._array is not None:
            return list(self.read(rows))
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(partial(self._read_one, upright=upright), rows))

    def _read_one(self, row: int, upright: bool) -> Tensor:
        name = self._names[row]
        try:
            return self._fitted(decode(self._bytes(name), upright=upright))
        except (OSError, SyntaxError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: {name} is not a readable image ({error})") from None

    def _fitted(self, image: Tensor) -> Tensor:
        if self.fit is None or tuple(image.shape) == self.fit:
            return image
        channels, height, width = self.fit
        picture = to_pil(image).convert("L" if channels == 1 else "RGB")
        return as_tensor(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
