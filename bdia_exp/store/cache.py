"""A study's results on disk. A stored result is not computed again."""

import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bdia_exp import dist
from bdia_exp.store import records
from bdia_exp.store.files import file_name
from bdia_exp.store.records import Record, Types

AND = "; "
"""Stands between the names of several devices."""


class Cells:
    """A study's results in `root`/cells, one JSON file each. A stored result is not computed again.

    The name of a file contains the digest of the result's identity (all settings that decide it),
    so studies with different settings can share a folder. `made`, the commit and the versions, and
    the name of its device are added to every result. `plainly` converts identities, also old ones,
    for comparison. The study's own file is `root`/`study`.json. Raises UserError if it is damaged.
    """

    def __init__(self, root: Path, plainly: Callable[[Any], Any], study: str):
        self.root, self.made, self._plainly = root, records.provenance(), plainly
        self._before: str = (records.load(root / f"{study}.json") or {}).get("device", "")
        self._devices: set[str] = set()

    @property
    def device(self) -> str:
        """The names of the devices that computed the results which `get` has returned.

        A result of an earlier version has no name; it counts as of those that its study named.
        """
        return AND.join(sorted(self._devices))

    def get(
        self,
        name: str,
        identity: Mapping[str, Any],
        keys: Types,
        compute: Callable[[], Record],
        device: str,
    ) -> Record:
        """The result of this identity: read from the disk, or else computed and written.

        A stored result that lacks one of the `keys` is computed again. `device` is where it is
        computed. Raises UserError if a file of this name is damaged, also if the result has a
        value of another type.
        """
        plain = self._plainly(identity)
        found = self._stored(name, plain, keys) or self._computed(name, plain, compute, device)
        self._devices |= {*found.get("device", self._before).split(AND)} - {""}
        return found

    def _stored(self, name: str, plain: Record, keys: Types) -> Record | None:
        for file in sorted(
            (self.root / "cells").glob(f"{glob.escape(file_name(name))}-????????.json")
        ):
            found = records.load(file) or {}
            if self._plainly(found.get("identity")) == plain and {*keys} <= found.keys():
                records.require(file, found, {**keys, "device": (str,)})
                return found
        return None

    def _computed(
        self, name: str, plain: Record, compute: Callable[[], Record], device: str
    ) -> Record:
        there = {"device": dist.device_name(device)}
        about = {"name": name, "identity": plain, **self.made, **there}
        found = {**about, **compute()}
        file = f"{file_name(name)}-{records.digest(plain)}.json"
        records.save(self.root / "cells" / file, found)
        return found
