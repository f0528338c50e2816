"""`evaluate`: FID and other metrics of a set of images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bdia_exp import dist
from bdia_exp.console import say
from bdia_exp.jobs.references import reference_sha256
from bdia_exp.jobs.scoring import (
    image_set,
    require_replaceable,
    score_set,
    scorer_of,
)
from bdia_exp.jobs.settings import Computing, Scoring
from bdia_exp.metrics.clip import prompts_of
from bdia_exp.overrides import listed
from bdia_exp.report import scores
from bdia_exp.store import records
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


@dataclass(frozen=True, kw_only=True)
class Evaluating(Scoring, Computing):
    """A set of images, and how it is scored."""

    images: str
    limit: int | None
    out: str | None


def evaluate(asked: Evaluating) -> Record:
    """Computes the `metrics` of a set of images. Returns the record that it wrote."""
    device = dist.device(asked.device)
    found = image_set(asked.images, asked.limit)
    count = len(found.first(asked.limit))
    file = _file(asked)
    if file:
        ours = partial(records.is_of, command="evaluate")
        require_replaceable(file, ours, "an earlier score of `evaluate`")
    metrics = listed(asked.metrics)
    prompts = prompts_of(found, count) if {"clip", "prompt"} & {*metrics} else None
    dist.start(device)
    scorer = scorer_of(asked, device, asked.batch, metrics, asked.clip)
    scorer.require_enough(count)
    notes = score_set(scorer, found, count, asked.batch, prompts)
    record = records.provenance() | {
        "command": "evaluate",
        "images": str(found.path),
        "reference": asked.reference,
        "reference_sha256": reference_sha256(asked.reference),
        "device": dist.device_name(device),
        "score": scorer.result(),
        "notes": notes,
        "config": asked.plain(),
    }
    say(f"{found.path} against {asked.reference}")
    say(scores.sentence(record["score"]))  # first: the numbers are not lost if the disk is full
    if file and dist.rank() == 0:
        records.save(file, record)
    return record


def _file(asked: Evaluating) -> Path | None:
    """The file of the record: `out`, or beside the run if the images are those of one."""
    run = Path(asked.images).expanduser()
    if asked.out:
        return Path(asked.out).expanduser()
    return run / f"score-{asked.features.name}.json" if (run / "record.json").exists() else None


VERB = Verb(evaluate, Evaluating)
