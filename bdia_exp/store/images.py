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
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.store.files import atomic, write_text
from bdia_exp.store.pictures import as_tensor, decode, to_pil

WRITERS = min(8, os.cpu_count() or 1)
LARGEST_DOUBLED, LARGEST_SHOWN = 128, 256  # pixels of an image on a contact sheet


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
