"""The folder of a run and its record: checked before loading, begun, and finished."""

from pathlib import Path

from omegaconf import OmegaConf

from bdia_exp import dist
from bdia_exp.errors import UserError
from bdia_exp.store import locks, records
from bdia_exp.store.files import remove_parts, write_once, write_text
from bdia_exp.store.records import Record


class RunFolder:
    """A folder with a `record.json`, written by an earlier start or by this one.

    `before` is the earlier record, empty if there was none; it is the same on every rank.
    `identity` is what decides the results of this run; who claims the folder sets it.
    `record` is the record of this run, set by `begin`; rank 0 writes it. `made` is the provenance
    of this start.
    """

    def __init__(self, root: Path):
        self.root = root
        self._file = root / "record.json"
        mine = dist.rank() == 0
        self.before: Record = dist.broadcast(self._read() if mine else {})
        self.identity: Record = {}
        self.record: Record = {}
        self.made: Record = {}

    @classmethod
    def of_run(cls, root: str | Path) -> "RunFolder":
        """The folder of an earlier run of `sample`. Raises UserError if it is none."""
        run = cls(Path(root).expanduser())
        if not isinstance(run.before.get("identity", {}).get("seeds"), str):
            raise UserError(f"{run.root} is not the folder of a run of `sample`")
        return run

    def _read(self) -> Record:
        advice = "remove that folder, or choose another out="
        return records.load(self._file, advice, of_run=True) or {}

    @property
    def complete(self) -> bool:
        """Whether an earlier start completed the run."""
        return bool(self.before.get("complete"))

    def require_ours(self, *names: str) -> None:
        """Raises UserError if the folder has no record but one of these files, or any file.

        Hidden files do not count. Images without a record may be of any sampler.
        """
        if self.before:
            return
        found = sorted(self.root.glob("[!.]*"))
        if names:
            found = [path for path in found if path.name in names]
        if found:
            raise UserError(
                f"{self.root} holds other files ({found[0].name}) and no record.json: choose "
                "another out=, or an empty folder"
            )

    def begin(self, record: Record, config: Record, part: str | None = None) -> None:
        """Writes the configuration and a record that is not complete yet.

        From now on the folder is this process's; with `part`, only this part of the run is, and the
        record is the one that the first part wrote. Raises UserError if another process has it.
        """
        self.record = {**records.provenance(), "identity": self.identity, **record}
        self.record |= {"complete": False, "config": config}
        self.made = records.made(self.record)
        self.record |= records.earlier(self.made, records.starts(self.before))
        self.record = dist.by_rank_0(lambda: self._begin_part(part) if part else self._begin())

    def resume(self) -> None:
        """Takes the folder of an earlier start, with its record. Raises UserError as `begin`."""
        dist.by_rank_0(self._take)
        self.record = self.before

    def _begin(self) -> Record:
        self._take()
        write_text(self.root / "config.yaml", self._config())
        records.save(self._file, self.record)
        return self.record

    def _begin_part(self, part: str) -> Record:
        locks.lock(self.root, part)
        self._require_parts_like(part)
        write_once(self.root / "config.yaml", self._config())
        write_once(self._file, records.text(self.record))
        found = self._read()
        if found != self.before:  # another part was faster
            records.require_same(self.root, found.get("identity", {}), self.identity)
        return found

    def _require_parts_like(self, part: str) -> None:
        """Raises UserError if one of another number of parts is in work: it has the same shards."""
        count = part.partition("of")[2]
        for other, holder in locks.holders(self.root).items():
            if (others := other.partition("of")[2]) != count:
                locks.unlock(self.root)
                raise UserError(
                    f"{self.root}: part {other.replace('of', '/')} is in work there ({holder}): "
                    f"wait until it has finished, or give part=K/{others}"
                )

    def _config(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.record["config"]))

    def _take(self) -> None:
        """Locks the folder, and deletes the temporary files of an earlier start.

        Those of other runs in it stay: they may be in work.
        """
        locks.lock(self.root)
        if self._read() != self.before:
            raise UserError(f"another process has written to {self.root}: run again to go on there")
        remove_parts(self.root, locks.NAME)

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
        self.leave()
        return self.record

    def leave(self) -> None:
        """Gives the folder back."""
        if dist.rank() == 0:
            locks.unlock(self.root)
