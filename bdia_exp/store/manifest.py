"""Lists of the files that a run wrote, with their sizes and sha256."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from bdia_exp import dist
from bdia_exp.store.files import write_text

LINE = re.compile(r"\d+,\d+,[0-9a-f]{64}")


class Manifest:
    """What a run wrote for each seed. Files with other bytes do not belong to the run.

    The list is `NAME.csv`, with a line `seed,bytes,sha256` for each file. While a run is not
    finished, each process appends to its own list `NAME.RANK.csv`; `merge` makes one list of all.
    A seed has several lines if a later start made its file again with other bytes.
    """

    def __init__(self, root: Path, name: str):
        self._whole, self._mine = root / f"{name}.csv", root / f"{name}.{dist.rank()}.csv"
        self._parts = f"{name}.*.csv"
        self._lines = self._read()

    def has(self, seed: int, data: bytes) -> bool:
        """Whether the run wrote exactly these bytes for this seed."""
        return _line(seed, data) in self._lines

    def has_name(self, name: str, data: bytes) -> bool:
        """The same for a file's name, such as 000000/000017.png."""
        seed = Path(name).stem
        return seed.isascii() and seed.isdigit() and self.has(int(seed), data)

    def __len__(self) -> int:
        """The number of lines; 0 for a run of an earlier release, which has no list."""
        return len(self._lines)

    def add(self, written: Mapping[int, bytes]) -> None:
        """Lists files that were just written: seed → bytes. Waits until the disk has the list."""
        new = {_line(seed, data) for seed, data in written.items()} - self._lines
        if new:
            self._lines |= new
            with open(self._mine, "ab") as file:
                # The list of an earlier start may end within a line.
                file.write("".join(f"\n{line}" for line in new).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def merge(self) -> None:
        """Writes one list, sorted by seed, in place of those of all processes."""
        self._lines |= self._read()
        lines = sorted(self._lines, key=lambda line: (int(line.partition(",")[0]), line))
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
        texts = [f.read_text("ascii", errors="replace") for f in self._files() if f.is_file()]
        return {line for text in texts for line in text.split("\n") if LINE.fullmatch(line)}


def _line(seed: int, data: bytes) -> str:
    return f"{seed},{len(data)},{hashlib.sha256(data).hexdigest()}"
