"""Files and zips that others made: read within bounds, and nothing is extracted to the disk."""

import zipfile
from collections import Counter
from pathlib import Path
from typing import IO

from bdia_exp.errors import brief

LARGEST = 2**28
"""Bytes of the largest picture, table of labels or captions that is read whole: 256 MiB."""
TOO_LARGE = f"more than {LARGEST // 2**20} MiB"


def contents(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError if it is another thing, or above LARGEST."""
    if not path.is_file():  # to read a pipe or a device would wait for ever
        raise OSError("not a file" if path.exists() else "a link to nothing")
    with path.open("rb") as file:
        return bounded(file)


def bounded(file: IO[bytes]) -> bytes:
    """The rest of a file. Raises OSError if it has more than LARGEST bytes."""
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(TOO_LARGE)
    return data


def opened(path: Path) -> zipfile.ZipFile:
    """A zip, to read. Raises OSError if it is damaged, or has two members of one name."""
    try:
        if not path.is_file():
            raise OSError("not a file")
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # a damaged zip can cause any exception
        raise OSError(f"not a readable zip: {error}") from None
    twice = [name for name, times in Counter(archive.namelist()).items() if times > 1]
    if twice:
        archive.close()
        raise OSError(f"it has two files of one name, {brief(twice[0])}")
    return archive


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a zip's member.

    Raises OSError if it is encrypted, packed by an unknown method, damaged, or above LARGEST.
    """
    try:
        if archive.getinfo(name).file_size > LARGEST:
            raise OSError(TOO_LARGE)
        with archive.open(name) as file:
            return bounded(file)
    except OSError:
        raise
    except Exception as error:  # zlib, lzma, struct and zipfile have their own
        raise OSError(str(error) or type(error).__name__) from None
