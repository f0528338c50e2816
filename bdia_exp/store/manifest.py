"""Lists of the files that a run wrote, with their sizes and sha256."""

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from bdia_exp import dist
from bdia_exp.store.files import write_text

LINE = re.compile(r"[\w.-]+,\d+,[0-9a-f]{64}", re.ASCII)

Stated = tuple[int, str]
"""What a list says of a file: its bytes and its sha256."""


class Manifest:
    """What a run wrote, by the keys of its files. Other bytes do not belong to the run.

    A key is the seed of an image, or the name of a shard's file. The list is `NAME.csv`, with a
    line `key,bytes,sha256` for each file. While a run is not finished, each process appends to its
    own list `NAME.WRITER.csv`, by default that of its rank; `merge` makes one list of all. A key
    has several lines if a later start made its file again with other bytes.
    """

    def __init__(self, root: Path, name: str, writer: str | None = None):
        self._whole, self._mine = root / f"{name}.csv", root / f"{name}.{writer or dist.rank()}.csv"
        self._parts = f"{name}.*.csv"
        self._adding = threading.Lock()
        self._lines = self._read()

    def has(self, seed: int, data: bytes) -> bool:
        """Whether the run wrote exactly these bytes for this seed."""
        return _line(seed, data) in self._lines

    def has_name(self, name: str, data: bytes) -> bool:
        """The same for a file's name, such as 000000/000017.png."""
        seed = Path(name).stem
        return seed.isascii() and seed.isdigit() and self.has(int(seed), data)

    def __len__(self) -> int:
        """The number of lines; 0 for a run of an earlier version, which has no list."""
        return len(self._lines)

    def stated(self) -> dict[str, set[Stated]]:
        """Every key, with what the list says of its file."""
        found: dict[str, set[Stated]] = {}
        for line in self._lines:
            key, size, sha256 = line.split(",")
            found.setdefault(key, set()).add((int(size), sha256))
        return found

    def add(self, written: Mapping[int, bytes]) -> None:
        """Lists files that were just written: seed → bytes. Waits until the disk has the list."""
        self._append(_line(seed, data) for seed, data in written.items())

    def state(self, key: str, stated: Stated) -> None:
        """Lists one file that was just written. Waits until the disk has the list."""
        self._append([",".join([key, *map(str, stated)])])

    def _append(self, lines: Iterable[str]) -> None:
        with self._adding:
            new = {*lines} - self._lines
            if not new:
                return
            self._lines = self._lines | new  # another thread may read the old set
            with open(self._mine, "ab") as file:
                # The list of an earlier start may end within a line.
                file.write("".join(f"\n{line}" for line in new).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def refresh(self) -> None:
        """Reads the lists again: others may have added or removed lines since they were read.

        Nobody else may remove lines meanwhile: call it when the run is locked.
        """
        self._lines = self._read()

    def merge(self, without: Iterable[str] = ()) -> None:
        """Writes one sorted list in place of those of all processes, `without` these keys.

        Nobody else may write to the run.
        """
        self.refresh()
        gone = {*without}
        self._lines = {line for line in self._lines if line.partition(",")[0] not in gone}
        # Seeds have no zeros in front: the shorter one is the smaller number.
        lines = sorted(self._lines, key=lambda line: (len(line.partition(",")[0]), line))
        write_text(self._whole, "".join(f"{line}\n" for line in lines))
        for file in self._files()[1:]:
            file.unlink()

    def remove(self) -> None:
        """Deletes all lists."""
        for file in self._files():
            file.unlink(missing_ok=True)
        self._lines = set()

    def _files(self) -> list[Path]:
        return [self._whole, *sorted(self._whole.parent.glob(self._parts))]

    def _read(self) -> set[str]:
        """The complete lines of all lists."""
        found: set[str] = set()
        for file in self._files():
            with suppress(FileNotFoundError):  # also one that `merge` has just removed
                lines = file.read_text("ascii", errors="replace").split("\n")
                found |= {line for line in lines if LINE.fullmatch(line)}
        return found


def _line(seed: int, data: bytes) -> str:
    return f"{seed},{len(data)},{hashlib.sha256(data).hexdigest()}"
