"""The zips of a run's shards, read as one set of files."""

import json
from functools import lru_cache
from pathlib import Path

from bdia_exp.store import archives
from bdia_exp.store.files import THREADS, json_object
from bdia_exp.store.listings import TABLE
from bdia_exp.store.shards import FOLDER, ZIP, listed


class ShardArchives:
    """The files in the listed shards of the run in `root`, by their names within the zips.

    One `dataset.json` stands for those of all shards. Raises OSError if a zip cannot be read.
    """

    def __init__(self, root: Path):
        self._opened = lru_cache(2 * THREADS)(archives.opened)  # few: open files are limited
        self._where: dict[str, Path] = {}
        rows: list[object] = []
        for file in listed(root, ZIP):
            archive = self._opened(file)
            names = archive.namelist()
            if TABLE in names:
                rows += _rows(archives.member(archive, TABLE), file)
            self._where |= dict.fromkeys((name for name in names if name != TABLE), file)
        self._table = json.dumps({"labels": rows}) if rows else None
        self.names = [*self._where, *([TABLE] if rows else [])]

    def member(self, name: str) -> bytes:
        """The bytes of a file. Raises OSError if they are damaged."""
        if name == TABLE and self._table is not None:
            return self._table.encode()
        return archives.member(self._opened(self._where[name]), name)


def _rows(data: bytes, file: Path) -> list[object]:
    """The labels in a shard's dataset.json."""
    try:
        rows = json_object(data).get("labels")
        if isinstance(rows, list):
            return rows
    except ValueError:
        pass
    raise OSError(f"{TABLE} in {file.name} has no list of labels")


def are_in(root: Path) -> bool:
    """Whether this is the folder of a run that has shards."""
    return (root / FOLDER).is_dir() and (root / "record.json").is_file()
