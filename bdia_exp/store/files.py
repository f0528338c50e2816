"""Atomic writing of files."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from bdia_exp.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It is renamed to `path` when the block ends without an error.

    Raises UserError, and removes the temporary file, if the disk is full or cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no room left on the disk for {path}: free some and run the same command again "
                "to continue"
            ) from None
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): choose another out="
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text with `atomic`."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def save_image(path: Path, picture: Image.Image) -> None:
    """Writes a PNG with `atomic`."""
    with atomic(path) as part:
        picture.save(part, format="png")
