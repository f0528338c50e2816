"""`evaluate`: FID and other metrics of a set of images."""

from dataclasses import dataclass
from pathlib import Path

from bdia_exp import dist
from bdia_exp.console import say
from bdia_exp.jobs.scoring import image_set, listed, score_set, scorer_of
from bdia_exp.jobs.settings import Computing, Scoring
from bdia_exp.metrics.clip import prompts_of
from bdia_exp.metrics.score import Score
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
    found = image_set(asked.images)
    count = len(found.first(asked.limit))
    prompts = prompts_of(found, count) if "clip" in listed(asked.metrics) else None
    dist.start(device)
    scorer = scorer_of(asked, device, asked.batch)
    scorer.require_enough(count)
    score_set(scorer, found, count, asked.batch, prompts)
    record = records.provenance() | {
        "command": "evaluate",
        "images": str(found.path),
        "reference": asked.reference,
        "device": dist.device_name(device),
        "score": scorer.result(),
        "config": asked.plain(),
    }
    run = Path(asked.images).expanduser()
    file = run / f"score-{asked.features.name}.json"
    if asked.out:
        file = Path(asked.out).expanduser()
    if dist.rank() == 0:
        if asked.out or (run / "record.json").exists():
            records.save(file, record)
        say(f"{found.path} against {asked.reference}")
        say(Score.sentence(record["score"]))
    return record


VERB = Verb(evaluate, Evaluating, parallel=True)
