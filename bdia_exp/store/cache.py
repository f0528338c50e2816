"""The results of a study on the disk: what is there is not computed again."""

import glob
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bdia_exp.store import records
from bdia_exp.store.records import Record


class Cells:
    """The results of a study in `root`/cells, a JSON each: what is there is not computed again.

    A result's file is named by the digest of its identity, all that decided it, so studies with
    other settings may share a folder. `made` goes into every result: commit and versions.
    `plainly` gives identities of any age the form that they are compared in.
    """

    def __init__(self, root: Path, plainly: Callable[[Any], Any]):
        self.root, self.made, self._plainly = root, records.provenance(), plainly

    def get(self, name: str, identity: Mapping[str, Any], compute: Callable[[], Record]) -> Record:
        """The result of this identity, from the disk or else computed and written."""
        plain = self._plainly(identity)
        slug = re.sub(r"[^\w.=-]+", "_", name.replace("γ", "gamma"), flags=re.ASCII)
        for file in sorted((self.root / "cells").glob(f"{glob.escape(slug)}-????????.json")):
            found = records.load(file)
            if found and self._plainly(found.get("identity")) == plain:
                return found
        found = {"name": name, "identity": plain, **self.made, **compute()}
        records.save(self.root / "cells" / f"{slug}-{records.digest(plain)}.json", found)
        return found
