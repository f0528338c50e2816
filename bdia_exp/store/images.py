"""Images on disk. A run can be killed at any moment and continued later.

A run stores image k as `images/{k//1000*1000:06d}/{k:06d}.png`, EDM's layout of sub-folders. No
file is ever incomplete. A finished run can be packed into one uncompressed zip with the same names
inside. Both contain `dataset.json`, from which EDM's tools read the labels.
"""

import json
import os
import shutil
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
from bdia_exp.store.files import as_tensor, atomic, decode, to_pil, write_text

WRITERS = min(8, os.cpu_count() or 1)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LARGEST_DOUBLED, LARGEST_SHOWN = 128, 256  # pixels of an image on a contact sheet
THREADS = min(8, os.cpu_count() or 1)  # to decode images; PIL releases Python's lock


class Folder:
    """The images of one run, by seed."""

    def __init__(self, root: Path):
        self.root = root / "images"
        self.zip = root / "images.zip"

    def path(self, seed: int) -> Path:
        return self.root / self.name(seed)

    @staticmethod
    def name(seed: int) -> str:
        return f"{seed - seed % 1000:06d}/{seed:06d}.png"

    def has(self, seeds: Iterable[int]) -> bool:
        return all(self.path(seed).exists() for seed in seeds)

    def write(self, seeds: Sequence[int], images: Tensor) -> None:
        """Stores images, uint8 [B, C, H, W]. Existing files are not changed."""

        def write(seed: int, image: Tensor) -> None:
            if not self.path(seed).exists():
                with atomic(self.path(seed)) as part:
                    to_pil(image).save(part, format="png")

        with ThreadPoolExecutor(WRITERS) as pool:  # compression releases Python's lock
            list(pool.map(write, seeds, images))

    def read(self, seeds: Sequence[int]) -> Tensor:
        """The stored images of these seeds, uint8 [B, C, H, W]."""
        return torch.stack([decode(self.path(seed).read_bytes()) for seed in seeds])

    def label(self, seeds: Sequence[int], labels: Sequence[int]) -> None:
        """Writes dataset.json: the class of every image."""
        rows = [[self.name(seed), label] for seed, label in zip(seeds, labels, strict=True)]
        write_text(self.root / "dataset.json", json.dumps({"labels": rows}))

    def remove(self) -> None:
        """Deletes the images."""
        shutil.rmtree(self.root, ignore_errors=True)

    def pack(self, seeds: Sequence[int]) -> None:
        """Moves the images into one uncompressed zip; its bytes depend only on the images."""
        names = [self.name(seed) for seed in sorted(seeds)]
        if (self.root / "dataset.json").exists():
            names.append("dataset.json")
        with atomic(self.zip) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name in names:
                entry = zipfile.ZipInfo(name)  # its date is always 1980
                archive.writestr(entry, (self.root / name).read_bytes())
        for name in names:
            (self.root / name).unlink()
        for folder in {Path(name).parent for name in names} - {Path(".")}:
            _remove_if_empty(self.root / folder)
        _remove_if_empty(self.root)


class Latents:
    """The end states of one run, by seed, still to be decoded.

    One file per seed, such as `latents/000000/000017.npy`: float64 [C, h, w].
    """

    def __init__(self, root: Path):
        self.root = root / "latents"

    def path(self, seed: int) -> Path:
        return (self.root / Folder.name(seed)).with_suffix(".npy")

    def has(self, seeds: Iterable[int]) -> bool:
        return all(self.path(seed).exists() for seed in seeds)

    def write(self, seeds: Sequence[int], states: Tensor) -> None:
        """Stores states, [B, C, h, w]."""
        for seed, state in zip(seeds, states.double().cpu().numpy(), strict=True):
            with atomic(self.path(seed)) as part, open(part, "wb") as file:
                np.save(file, state, allow_pickle=False)

    def read(self, seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """The states of these seeds, float64 [B, *shape]. Raises UserError for a damaged file."""
        states = []
        for seed in seeds:
            try:
                state = np.load(self.path(seed), allow_pickle=False)
                if (
                    state.shape != shape
                    or state.dtype != np.float64
                    or not np.isfinite(state).all()
                ):
                    raise ValueError(f"{state.dtype} {state.shape}, not float64 {shape}")
            except (OSError, ValueError, EOFError) as error:
                raise UserError(
                    f"{self.path(seed)} is damaged ({error}): remove it and run again"
                ) from None
            states.append(torch.from_numpy(state))
        return torch.stack(states)


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
