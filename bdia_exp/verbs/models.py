"""`models`: lists the models that can be chosen with model=NAME."""

from dataclasses import dataclass

from bdia_exp.console import say
from bdia_exp.jobs.asked import Asked
from bdia_exp.sources import checkpoints
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb

ABSENT = {"fetch": "to be fetched", "hub": "to be fetched", "random": "made when needed"}
"""The state to print for a checkpoint that is not here, by the prefix of its name."""


@dataclass(frozen=True, kw_only=True)
class Listing(Asked):
    """No keys."""


def models(asked: Listing, listing: Record) -> Record:
    """Prints the models that can be chosen, whether their checkpoint is here, and its size."""
    for name, entry in listing.items():
        state = "needs model.checkpoint=PATH"
        if checkpoint := entry["checkpoint"]:
            state = ABSENT.get(checkpoint.partition(":")[0], "missing")
            if path := checkpoints.present(checkpoint):
                files = path.rglob("*") if path.is_dir() else [path]
                state = f"ready ({sum(file.stat().st_size for file in files) / 1e6:.1f} MB)"
        say(f"model={name:21} {state:28} {entry['about']}")
    return listing


VERB = Verb(models, Listing, lists=True)
