"""The folder of a run and its record: checked before loading, begun, and finished."""

from pathlib import Path

from omegaconf import OmegaConf

from bdia_exp import dist
from bdia_exp.errors import UserError
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record


class RunFolder:
    """A folder with a `record.json`, written by an earlier start or by this one.

    `before` is the earlier record, empty if there was none; it is the same on every rank.
    `identity` is what decides the results of this run; who claims the folder sets it.
    `record` is the record of this run, set by `begin`; rank 0 writes it.
    """

    def __init__(self, root: Path):
        self.root = root
        self._file = root / "record.json"
        mine = dist.rank() == 0
        self.before: Record = dist.broadcast((records.load(self._file) or {}) if mine else {})
        self.identity: Record = {}
        self.record: Record = {}

    @property
    def complete(self) -> bool:
        """Whether an earlier start completed the run."""
        return bool(self.before.get("complete"))

    def require_ours(self) -> None:
        """Raises UserError if the folder has files but no record."""
        if not self.before and self.root.is_dir() and any(self.root.iterdir()):
            raise UserError(
                f"{self.root} holds other files: choose another out=, or an empty folder"
            )

    def begin(self, record: Record, config: Record) -> None:
        """Writes the configuration and a record that is not complete yet."""
        self.record = {**records.provenance(), "identity": self.identity, **record}
        self.record |= {"complete": False, "config": config}
        if dist.rank() == 0:
            text = OmegaConf.to_yaml(OmegaConf.create(config))
            write_text(self.root / "config.yaml", text)
            records.save(self._file, self.record)
        dist.barrier()

    def note(self, key: str, value: object) -> None:
        """Adds an entry to the record of an unfinished run."""
        self.record[key] = value
        if dist.rank() == 0:
            records.save(self._file, self.record)

    def finish(self, numbers: Record) -> Record:
        """Writes the complete record and returns it. Call it last."""
        self.record |= {**numbers, "complete": True}
        if dist.rank() == 0:
            records.save(self._file, self.record)
        return self.record
