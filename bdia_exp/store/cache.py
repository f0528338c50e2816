"""A study's results on disk. A stored result is not computed again."""

import glob
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bdia_exp.store import records
from bdia_exp.store.records import Record


class Cells:
    """A study's results in `root`/cells, one JSON file each. A stored result is not computed again.

    The name of a file contains the digest of the result's identity (all settings that decide it),
    so studies with different settings can share a folder. `made`, the commit and the versions, is
    added to every result. `plainly` converts identities, also old ones, for comparison.
    """

    def __init__(self, root: Path, plainly: Callable[[Any], Any]):
        self.root, self.made, self._plainly = root, records.provenance(), plainly

    def get(self, name: str, identity: Mapping[str, Any], compute: Callable[[], Record]) -> Record:
        """The result of this identity: read from the disk, or else computed and written."""
        plain = self._plainly(identity)
        slug = re.sub(r"[^\w.=-]+", "_", name.replace("γ", "gamma"), flags=re.ASCII)
        for file in sorted((self.root / "cells").glob(f"{glob.escape(slug)}-????????.json")):
            found = records.load(file)
            if found and self._plainly(found.get("identity")) == plain:
                return found
        found = {"name": name, "identity": plain, **self.made, **compute()}
        records.save(self.root / "cells" / f"{slug}-{records.digest(plain)}.json", found)
        return found
