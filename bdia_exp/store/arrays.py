"""Arrays in .npy and .npz files, read by rows and within bounds.

NumPy's own loader is not used: it reserves the memory that a header claims, and its messages advise
to load pickles. No pickle is read here.
"""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from bdia_exp.errors import brief
from bdia_exp.store import archives

READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
PACKED = 16
"""An array above `archives.LARGEST` is read whole only if its file has 1/16 of its bytes."""


class Array:
    """One array in a file: its shape and dtype. Nothing else is in memory until it is taken.

    Raises OSError if the bytes are not an array of plain numbers or text, or too few for its shape.
    """

    def __init__(self, file: IO[bytes], size: int, packed: int):
        """`size` is that of the array with its header; `packed` is what it takes on the disk."""
        self._file, self._packed = file, packed
        try:
            version = np.lib.format.read_magic(file)
            self.shape, self._fortran, self.dtype = READERS[version](file)
        except Exception:  # damaged bytes can cause any exception
            raise OSError("it does not begin as NumPy's arrays do") from None
        self._start = file.tell()
        self._bytes = math.prod(self.shape) * self.dtype.itemsize
        if self.dtype.hasobject:
            raise OSError("an array of Python objects: save it as numbers")
        if any(length < 0 for length in self.shape) or self._start + self._bytes > size:
            raise OSError(f"its header claims {list(self.shape)}, but it has {size:,} bytes")

    def take(self, rows: Iterable[int]) -> list[np.ndarray]:
        """These rows, each of the shape [*shape[1:]]. Raises OSError if they are damaged."""
        if self._fortran:
            whole = self.whole()
            return [np.ascontiguousarray(whole[row]) for row in rows]
        each = self._bytes // self.shape[0]
        taken = (self._numbers(self._start + row * each, each) for row in rows)
        return [row.reshape(self.shape[1:]) for row in taken]

    def whole(self) -> np.ndarray:
        """The array. Raises OSError if it is damaged, or above the bound of `PACKED`."""
        if self._bytes > max(archives.LARGEST, PACKED * self._packed):
            raise OSError(f"it unpacks to {self._bytes / 2**30:,.1f} GiB: save it unpacked")
        numbers = self._numbers(self._start, self._bytes)
        return numbers.reshape(self.shape, order="F" if self._fortran else "C")

    def _numbers(self, start: int, count: int) -> np.ndarray:
        try:
            if self._file.tell() != start:
                self._file.seek(start)
            data = bytearray(self._file.read(count))
            return np.frombuffer(data, self.dtype, count // self.dtype.itemsize)
        except Exception as error:  # zlib, zipfile and NumPy have their own; MemoryError too
            raise OSError(str(error) or type(error).__name__) from None


class Arrays:
    """The arrays of an .npz by their names, or that of an .npy as `arr_0`. Each is opened lazily.

    Raises OSError if the file cannot be read as either.
    """

    def __init__(self, path: Path):
        self._path, self._archive = path, None
        self.names = ["arr_0"]
        if zipfile.is_zipfile(path):
            self._archive = archives.opened(path)
            files = (name for name in self._archive.namelist() if name.endswith(".npy"))
            self.names = [name.removesuffix(".npy") for name in files]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Array:
        """One array. Raises OSError, with its name, if it cannot be read."""
        size = self._path.stat().st_size
        if self._archive is None:
            return Array(self._path.open("rb"), size, size)
        try:
            info = self._archive.getinfo(f"{name}.npy")
            packed = min(info.compress_size, size)
            return Array(self._archive.open(info), info.file_size, packed)
        except Exception as error:  # also encrypted, packed by an unknown method, or damaged
            raise OSError(f"{brief(name)}: {error}") from None
