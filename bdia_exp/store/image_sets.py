"""Sets of images to read: folders, zips, npz and npy files, single images, and folders of runs."""

import hashlib
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bdia_exp.errors import UserError, brief
from bdia_exp.store import archives, listings, shard_archives
from bdia_exp.store.arrays import Array, Arrays
from bdia_exp.store.files import THREADS, digest
from bdia_exp.store.listings import Listing
from bdia_exp.store.manifest import Manifest
from bdia_exp.store.pictures import PIXELS, as_tensor, on_white, read_picture, to_pil
from bdia_exp.store.shard_archives import ShardArchives
from bdia_exp.store.shards import FOLDER


def is_image_set(path: Path) -> bool:
    """Whether `path` can contain images: a folder, a zip, an npy, or an npz without statistics."""
    if path.is_dir() or path.suffix.lower() == ".npy":
        return True
    names = _members(path)
    return bool(names) and "mu.npy" not in names


class ImageSet:
    """A set of images: a run's folder, a folder, a zip, an npz, an npy, or a single image.

    Folders and zips are read with all sub-folders, sorted by name, numbers by value, without hidden
    files. An npz has uint8 [N, H, W, C] or [N, H, W] under `images` (or as its first array), and
    optionally the classes under `labels`, or as `arr_1` in guided-diffusion's files. An npy is one
    such array.

    With `fit`, a shape (C, H, W), images of another shape are cropped at the centre, resized
    (Lanczos) and converted to grey or RGB. Transparent parts are put on white.

    `notes` are sentences about what was left out; `transparent` counts the images with transparent
    parts that were read. Raises UserError if there are no images, or if one cannot be read.
    """

    def __init__(self, source: str | Path, fit: tuple[int, int, int] | None = None):
        self.fit = fit
        self.labels: list[int] | None = None
        self.notes: list[str] = []
        self.transparent = 0
        self._array: Array | None = None
        self._archive: zipfile.ZipFile | None = None
        self._shards: ShardArchives | None = None
        self._names: list[str] = []
        try:
            path = Path(source).expanduser()
            there = path.exists()
        except (OSError, ValueError, RuntimeError):  # too long, NUL, or an unknown user's home
            there = False
        if not there:
            raise UserError(
                f"{brief(source, 200)} does not exist: give a run, a folder, a zip, an npz or an "
                "image"
            )
        if not (path.is_dir() or path.is_file()):  # to read a pipe would wait for ever
            raise UserError(f"{path} is a pipe or a device: give a file or a folder")
        self.path = _of_run(path)
        in_shards = self.path == path / FOLDER
        self._run = Manifest(path, "images") if self.path != path and not in_shards else None
        try:
            if in_shards:
                self._shards = ShardArchives(path)
                self._use(listings.of_names(self._shards.names))
            else:
                self._open(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read as images: {error}") from None
        if not len(self):
            raise UserError("; ".join([f"{self.path} holds no images", *self.notes]))

    def _open(self, path: Path) -> None:
        if path.is_dir():
            self._use(listings.of_folder(path))
        elif listings.is_picture(path.name):
            self.path, self._names = path.parent, [path.name]
        elif path.suffix.lower() == ".npy":
            self._open_arrays(Arrays(path))
        elif path.suffix.lower() not in (".zip", ".npz") and not zipfile.is_zipfile(path):
            known = ", ".join(sorted(listings.SUFFIXES))
            raise OSError(f"it is no zip, npz or npy, and no picture ({known})")
        else:
            archive = archives.opened(path)
            names = archive.namelist()
            if _are_arrays(names):
                self._open_arrays(Arrays(path))
            else:
                self._archive = archive
                self._use(listings.of_names(names))

    def _use(self, found: Listing) -> None:
        self._names, self.notes = found.pictures, found.notes
        if found.table:
            try:
                self.labels, more = listings.labels(self._bytes(listings.TABLE), self._names)
            except (OSError, ValueError) as error:
                raise OSError(f"{listings.TABLE} is {error}") from None
            self.notes += more

    def _open_arrays(self, arrays: Arrays) -> None:
        name = "images" if "images" in arrays else arrays.names[0]
        array = arrays[name]
        shape = (*array.shape, 1) if len(array.shape) == 3 else array.shape
        # [H, W, C] of one image would be taken for H grey images of a few pixels.
        one = len(array.shape) == 3 and shape[2] <= 4
        if array.dtype != np.uint8 or len(shape) != 4 or one or not 1 <= shape[3] <= 4:
            raise OSError(
                f"{array.dtype} {list(array.shape)} is not uint8 [N, H, W, C] with 1 to 4 channels"
            )
        if not 0 < shape[1] * shape[2] <= PIXELS:
            raise OSError(f"images of {shape[2]} × {shape[1]} pixels are not read")
        self._array = array
        key = "labels" if "labels" in arrays else "arr_1"  # guided-diffusion has no names
        if key in arrays:
            self._label(key, arrays[key])

    def _label(self, key: str, labels: Array) -> None:
        if labels.dtype.kind in "iu" and labels.shape == (len(self),):
            self.labels = labels.whole().astype(np.int64).tolist()
            return
        found = f"{key} is {labels.dtype} {list(labels.shape)}, not a class for each image"
        if key == "labels":
            raise OSError(f"{found}, integers [{len(self)}]")
        self.notes.append(f"{found}: it was left out")

    def first(self, limit: int | None) -> range:
        """The positions of the first `limit` images, or all. Raises UserError if out of range."""
        if limit is not None and not 1 <= limit <= len(self):
            raise UserError(f"limit={limit} must be 1 to {len(self)}, the images in {self.path}")
        return range(limit or len(self))

    def __len__(self) -> int:
        return len(self._names) if self._array is None else self._array.shape[0]

    @property
    def names(self) -> list[str]:
        """The images' file names within the set; empty for an npz."""
        return self._names

    def remarks(self, transparent: int) -> list[str]:
        """Sentences about what was left out, and about this many images with transparent parts."""
        if not transparent:
            return self.notes
        return [*self.notes, f"{transparent} images have transparent parts: they were put on white"]

    def _bytes(self, name: str) -> bytes:
        if self._shards is not None:
            return self._shards.member(name)
        if self._archive is not None:
            return archives.member(self._archive, name)
        return archives.contents(self.path / name)

    def sha256(self) -> str:
        """Of the content: of the file of an array, else of every picture's file, in order.

        Raises UserError as `read` does for a picture that the run did not write.
        """
        if self._array is not None:
            return digest(self.path)
        found = hashlib.sha256()
        with ThreadPoolExecutor(THREADS) as pool:
            for own in pool.map(lambda name: hashlib.sha256(self._own(name)).digest(), self._names):
                found.update(own)
        return found.hexdigest()

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at these positions, uint8 [B, C, H, W]: RGB unless all are grey.

        Raises UserError if their sizes differ.
        """
        images = self.read_each(rows, upright=bool(self.fit))
        for row, image in zip(rows, images, strict=True):
            if image.shape[1:] != images[0].shape[1:]:
                size, first = (" × ".join(map(str, i.shape[:0:-1])) for i in (image, images[0]))
                raise UserError(
                    f"{self.path}: {brief(self._names[row])} is {size}, others are {first}: one "
                    "size only, unless resize= makes them one"
                )
        channels = max(len(image) for image in images)
        return torch.stack([image.expand(channels, -1, -1) for image in images])

    def read_each(self, rows: Sequence[int], *, upright: bool = True) -> list[Tensor]:
        """The images at these positions, each uint8 [1 or 3, H, W] of any size.

        With `upright` they are rotated by their EXIF orientation.
        """
        if self._array is not None:
            found = self._rows_of(self._array, rows)
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                found = list(pool.map(partial(self._read_one, upright=upright), rows))
        self.transparent += sum(transparent for _, transparent in found)
        return [image for image, _ in found]

    def _rows_of(self, array: Array, rows: Sequence[int]) -> list[tuple[Tensor, bool]]:
        try:
            taken = [torch.from_numpy(np.atleast_3d(row)) for row in array.take(rows)]
        except OSError as error:
            raise UserError(f"{self.path} is damaged: {error}") from None
        images = [image.permute(2, 0, 1) for image in taken]
        plain = [(i, False) if len(i) in (1, 3) else on_white(to_pil(i)) for i in images]
        return [(self._fitted(image), transparent) for image, transparent in plain]

    def _read_one(self, row: int, upright: bool) -> tuple[Tensor, bool]:
        name = self._names[row]
        try:
            data = self._own(name)
            image, transparent = read_picture(data, upright=upright)
            return self._fitted(image), transparent
        except OSError as error:
            raise UserError(
                f"{self.path}: {brief(name)} is not a readable image ({error})"
            ) from None

    def _own(self, name: str) -> bytes:
        """The bytes of a picture. Raises UserError if the set is a run that did not write it."""
        data = self._bytes(name)
        if self._run and not self._run.has_name(name, data):
            raise UserError(
                f"{self.path}: {brief(name)} is not an image that this run wrote: remove it if "
                "it is yours, and run the same `sample` again"
            )
        return data

    def _fitted(self, image: Tensor) -> Tensor:
        if self.fit is None or tuple(image.shape) == self.fit:
            return image
        channels, height, width = self.fit
        picture = to_pil(image).convert("L" if channels == 1 else "RGB")
        return as_tensor(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def _of_run(path: Path) -> Path:
    """Where a run's folder has its images: a zip, unless that is broken, a folder, or shards.

    Another path is returned unchanged. Raises UserError if the run kept no images.
    """
    zipped, folder = path / "images.zip", path / "images"
    if _members(zipped) or (zipped.is_file() and not folder.is_dir()):
        return zipped
    if folder.is_dir():
        return folder
    if shard_archives.are_in(path):
        return path / FOLDER
    if (path / "record.json").is_file() and (path / "config.yaml").is_file():
        raise UserError(f"{path} is a run without images: give one of `sample` with save=folder")
    return path


def _are_arrays(names: Sequence[str]) -> bool:
    return any(n.endswith(".npy") for n in names) and not any(map(listings.is_picture, names))


def _members(path: Path) -> list[str]:
    """The names in a zip or npz; none if it is not a readable one."""
    try:
        if not path.is_file():  # to look into a pipe would wait for ever
            return []
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # not a zip, or a damaged one
        return []
