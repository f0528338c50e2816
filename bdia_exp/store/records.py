"""Records: settings, results and commit of a run."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any

from bdia_exp.errors import UserError, brief
from bdia_exp.store.files import json_object, write_text

PACKAGES = ("torch", "torchmetrics", "torch-fidelity", "numpy", "hydra-core", "omegaconf")

Record = dict[str, Any]
"""One JSON object. Its `identity` has the settings that decide the images; the rest are results."""


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hex digits that name this identity; the order of its keys does not matter."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def provenance() -> Record:
    """The commit, versions and machine of a result."""
    versions = {"bdia-exp": version("bdia-exp"), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    machine = f"{platform.system()} {platform.machine()}"
    return {"commit": commit(), "versions": versions, "platform": machine}


def made(record: Record) -> Record:
    """The provenance in a record: commit, versions, platform and device of its last start."""
    keys = ("commit", "versions", "platform", "device")
    return {key: record[key] for key in keys if key in record}


def starts(record: Record) -> list[Record]:
    """The provenance of all starts that a record knows, the last one last; none if it is empty."""
    before = record.get("earlier")
    return [*(before if isinstance(before, list) else []), *([made(record)] if record else [])]


def earlier(now: Record, others: Iterable[Record]) -> Record:
    """The entry of a record for other starts than `now`, each once; {} if there are none."""
    found = [one for one in each_once(others) if one != now]
    return {"earlier": found} if found else {}


def each_once(found: Iterable[Record]) -> list[Record]:
    """The same without repetitions, in the same order."""
    unique: list[Record] = []
    for one in found:
        if one not in unique:
            unique.append(one)
    return unique


def commit() -> str:
    """The commit of the running source tree, with `+` if there are uncommitted changes."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", here, *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return "not in a git checkout"
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except OSError:
        return "git is not installed"


def save(path: Path, record: Record) -> None:
    write_text(path, text(record))


def text(record: Record) -> str:
    """A record as its file has it."""
    return json.dumps(record, indent=1, default=str) + "\n"


Types = Mapping[str, tuple[type, ...]]
"""Entries of a JSON object → their types, where it has them."""
NUMBER_OR_NULL = (int, float, NoneType)
TYPES: Types = dict.fromkeys(("identity", "config", "score", "model", "features"), (dict,)) | {
    "images_per_second": NUMBER_OR_NULL,
}
CONFIG_TYPES: Types = {
    "sheet": (int,),
    "metrics": (list, str, NoneType),
    "reference": (str, NoneType),
}


def load(
    path: Path, advice: str = "remove it and run again", *, of_run: bool = False
) -> Record | None:
    """The record at `path`, or None if there is none. Raises UserError if it is damaged.

    A record of a run has an identity and a config; one that has `complete` is of a run.
    """
    if not path.exists():
        return None
    try:
        record = json_object(path.read_text(encoding="utf-8"))
        require_types(record, TYPES)
        require_types(record.get("config", {}), CONFIG_TYPES)
        if of_run or "complete" in record:
            for key in ("identity", "config"):
                if key not in record:
                    raise ValueError(f"it has no {key}")
        return record
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from None


def require_types(found: Mapping[str, Any], types: Types) -> None:
    """Raises ValueError, naming the entry, if one has another type."""
    for key, kinds in types.items():
        if key in found and not isinstance(found[key], kinds):
            raise ValueError(f"its {key} cannot be {brief(found[key])}")


def require(path: Path, found: Mapping[str, Any], types: Types) -> None:
    """Raises UserError, naming the entry and the file, if one has another type."""
    try:
        require_types(found, types)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run again") from None


def is_of(path: Path, command: str) -> bool:
    """Whether a file is a record that this command wrote."""
    try:
        return (load(path) or {}).get("command") == command
    except UserError:
        return False


def require_same(
    path: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    advice: str = "choose another out= or remove that folder",
) -> None:
    """Raises UserError if the identities differ, and names the differences."""
    new = json.loads(json.dumps(new, default=str))
    differs = sorted(_differences(old, new))
    if differs:
        raise UserError(f"{path} holds another experiment ({'; '.join(differs[:4])}): {advice}")


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [
            text
            for key in keys
            for text in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    was, now = ("the default" if value is None else value for value in (old, new))
    return [] if old == new else [f"{name} was {was}, now {now}"]
