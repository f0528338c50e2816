"""Atomic writing of files, and JSON from elsewhere."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from bdia_exp.errors import UserError

THREADS = min(8, os.cpu_count() or 1)
"""To read, hash, compress and write files: all of this releases Python's lock."""
PART = ".part"
"""The end of a temporary file's name."""


@contextmanager
def atomic(path: Path, *, durable: bool = True, once: bool = False) -> Iterator[Path]:
    """A temporary path to write to. It is renamed to `path` when the block ends without an error.

    With `durable` it waits until the disk has the file, so `path` is whole also after a power cut.
    Without, it is faster; the reader must then know the file by its hash. With `once` it raises
    FileExistsError if there is a file of this name.

    Raises UserError, and removes the temporary file, if the disk is full or cannot be written.
    """
    part = _part_of(path)
    with _told(path, but=FileExistsError if once else ()):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if durable:
                _flush(part)
            _name(part, path, once)
            if durable:
                _flush(path.parent)
                _remove_old_parts(path)
        finally:
            _remove(part)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a new folder: a temporary one, which is renamed when all is in it."""
    part = _part_of(path)
    _remove(part)  # of a killed process that had the same number
    with _told(path):
        try:
            part.mkdir(parents=True)
            yield part
            os.replace(part, path)
            _remove_old_parts(path)
        finally:
            _remove(part)


def _part_of(path: Path) -> Path:
    """The temporary name. Processes of several machines, whose numbers may be equal, can write to
    one folder."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PART}")


@contextmanager
def _told(path: Path, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Raises UserError, which says what to do, for an OSError while `path` is written."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no room left on the disk for {path}: free some and run the same command again "
                "to continue"
            ) from None
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): choose another out="
        ) from None


def _remove(part: Path) -> None:
    """Deletes a temporary file or folder, if it is there and can be deleted."""
    with suppress(OSError):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def _name(part: Path, path: Path, once: bool) -> None:
    """Gives a temporary file its name."""
    if not once:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(part, path)


def _flush(path: Path) -> None:
    """Waits until the disk has this file, or the names in this folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not on this file system
            raise
    finally:
        os.close(number)


def _remove_old_parts(path: Path) -> None:
    """Deletes the temporary files of `path` that killed processes left a day ago or earlier."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        with suppress(OSError):
            if part.stat().st_mtime < time.time() - 86400:
                _remove(part)


def remove_parts(root: Path, others: str) -> None:
    """Deletes the temporary files that a killed process left in a folder and those below it.

    A folder below it that has a file named `others`, and what is in that folder, stays as it is.
    """
    for folder, below, names in os.walk(root):
        if others in names and Path(folder) != root:
            below.clear()
            continue
        for name in [*names, *below]:
            if name.startswith(".") and name.endswith(PART):
                _remove(Path(folder, name))


def write_text(path: Path, text: str) -> None:
    """Writes a text with `atomic`."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_once(path: Path, text: str) -> None:
    """Writes a text with `atomic`, unless the file exists: of several processes the first one."""
    with suppress(FileExistsError), atomic(path, once=True) as part:
        part.write_text(text, encoding="utf-8")


def digest(path: Path, kind: str = "sha256") -> str:
    """The file's `sha256` or `md5` in hexadecimal, read in pieces."""
    state = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def json_object(text: str | bytes, parse_constant: Callable | None = None) -> dict[str, Any]:
    """A JSON object from elsewhere. Raises ValueError, with the reason, if it is anything else.

    `parse_constant` is called for NaN and Infinity, as by `json.loads`.
    """
    try:
        found = json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def save_image(path: Path, picture: Image.Image) -> None:
    """Writes a PNG with `atomic`."""
    with atomic(path) as part:
        picture.save(part, format="png")


def file_name(words: str) -> str:
    """A name of a file or a folder in ASCII, made of words in any characters."""
    return re.sub(r"[^\w.=-]+", "_", words.replace("γ", "gamma"), flags=re.ASCII)
