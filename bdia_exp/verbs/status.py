"""`status`: how far runs are, who works on them, and what went wrong."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bdia_exp.console import duration, say
from bdia_exp.errors import UserError, brief
from bdia_exp.jobs import sharding
from bdia_exp.jobs.asked import Asked
from bdia_exp.seeds import parse
from bdia_exp.store import journals, locks, records
from bdia_exp.store.manifest import Manifest
from bdia_exp.store.records import Record
from bdia_exp.store.shards import Part, Shards
from bdia_exp.verbs import Verb

RECORD = "record.json"


@dataclass(frozen=True, kw_only=True)
class Asking(Asked):
    """A run, or a folder that has runs somewhere below it."""

    path: str


def status(asked: Asking) -> list[Record]:
    """Prints a line for each run at a path. Returns what the lines say. Nothing is changed."""
    path = Path(asked.path).expanduser()
    found = []
    for root in _runs(path):
        try:
            state = state_of(root)
        except UserError as error:
            state = {"run": str(root), "error": str(error)}
        found.append(state)
        say(_line(state))
    if not found:
        raise UserError(f"{path} has no runs: give the folder of a run, or one that has runs in it")
    if len(found) > 1:
        whole = sum(bool(state.get("complete")) for state in found)
        say(f"{whole} of {len(found)} runs are complete")
    return found


def _runs(path: Path) -> Iterator[Path]:
    """The folders of runs, without looking for others inside them."""
    for folder, inner, files in os.walk(path):
        if RECORD in files:
            inner.clear()
            yield Path(folder)
        inner.sort()


def state_of(root: Path) -> Record:
    """How far one run is. Raises UserError if its record is damaged."""
    record = records.load(root / RECORD) or {}
    state: Record = {"run": str(root), "complete": bool(record.get("complete"))}
    images = record.get("images")
    state["images"] = images if isinstance(images, int) else None
    state["holders"] = locks.holders(root)
    config, identity = record.get("config", {}), record.get("identity", {})
    if config.get("save") == "shards":
        state |= _of_shards(Shards.of_run(root, record), record, root, state["holders"])
    elif isinstance(seeds := identity.get("seeds"), str):
        wanted = len(parse(seeds))
        kind = "latents" if config.get("save") == "latents" else "images"
        made = len(Manifest(root, kind).stated())
        state |= {"images": wanted, "made": wanted if state["complete"] else min(made, wanted)}
    if state["complete"]:
        state["images_per_second"] = record.get("images_per_second")
    return state


def _of_shards(shards: Shards, record: Record, root: Path, holders: dict[str, str]) -> Record:
    """Shards that are made, missing, or of another size than listed; the rate; the last errors."""
    missing = shards.missing(*sharding.suffixes(record))
    stated = shards.manifest.stated()
    damaged = [shard for shard in missing if shards.file(shard).name in stated]
    left = sum(len(shard.seeds) for shard in missing)
    state: Record = {
        "images": len(shards.wanted),
        "made": len(shards.wanted) - left,
        "shards": len(shards.all),
        "missing": len(missing),
        "damaged": sum(shards.missing(among=[shard]) != [] for shard in damaged),
        "errors": {},
    }
    rate = 0.0
    for journal in journals.read(root):
        part = journal.get("part")
        name = Part.parse(part).name if part else ""
        if name in holders:
            rate += journal.get("sampled", 0) / journal.get("seconds", 1)
        elif "error" in journal:
            state["errors"][f"part {part}" if part else "the run"] = journal["error"]
    if rate and left:
        state |= {"images_per_second": round(rate, 3), "seconds_left": round(left / rate)}
    return state


def _line(state: Record) -> str:
    """A state as text."""
    if "images" not in state:
        return f"{state['run']}: {state['error']}"
    words = ["complete" if state["complete"] else "not complete"]
    if "shards" in state:
        made = state["shards"] - state["missing"]
        words.append(f"{made} of {state['shards']} shards")
        if state["damaged"]:
            words.append(f"{state['damaged']} of the others are damaged or removed")
    if state.get("made") is not None:
        words.append(f"{state['made']:,} of {state['images']:,} images")
    if rate := state.get("images_per_second"):
        words.append(f"{rate:.3g} images/s")
    if "seconds_left" in state:
        words.append(f"{duration(state['seconds_left'])} left")
    lines = [f"{state['run']}: {', '.join(words)}"]
    for part, holder in state["holders"].items():
        name = f"part {part.replace('of', '/')}" if part else "the run"
        lines.append(f"  {name} is in work: {holder}")
    lines += [
        f"  {name} stopped: {brief(why, 300)}" for name, why in state.get("errors", {}).items()
    ]
    return "\n".join(lines)


VERB = Verb(status, Asking)
