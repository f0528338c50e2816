"""The folder of a run: claimed before anything is loaded, begun, and finished with its record."""

from pathlib import Path

from omegaconf import OmegaConf

from bdia_exp import dist
from bdia_exp.errors import UserError
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record


class RunFolder:
    """A folder with a `record.json`, that of an earlier start or of this one.

    `before` is the record that was there, empty if there was none; the same on every rank.
    `record` is that of this run, from `begin` on; rank 0 writes it.
    """

    def __init__(self, root: Path):
        self.root = root
        self._file = root / "record.json"
        mine = dist.rank() == 0
        self.before: Record = dist.broadcast((records.load(self._file) or {}) if mine else {})
        self.record: Record = {}

    @property
    def complete(self) -> bool:
        """Whether an earlier start ended well."""
        return bool(self.before.get("complete"))

    def require_ours(self) -> None:
        """Raises UserError if there are files, and no record that says whose."""
        if not self.before and self.root.is_dir() and any(self.root.iterdir()):
            raise UserError(
                f"{self.root} holds other files: choose another out=, or an empty folder"
            )

    def begin(self, record: Record, config: Record) -> None:
        """Makes the folder this run's: its configuration, and a record that is not complete."""
        self.record = records.provenance() | record | {"complete": False, "config": config}
        if dist.rank() == 0:
            text = OmegaConf.to_yaml(OmegaConf.create(config))
            write_text(self.root / "config.yaml", text)
            records.save(self._file, self.record)
        dist.barrier()

    def note(self, key: str, value: object) -> None:
        """Adds to the record of a run that goes on."""
        self.record[key] = value
        if dist.rank() == 0:
            records.save(self._file, self.record)

    def finish(self, numbers: Record) -> Record:
        """Writes the complete record, after everything else, and returns it."""
        self.record |= {**numbers, "complete": True}
        if dist.rank() == 0:
            records.save(self._file, self.record)
        return self.record
