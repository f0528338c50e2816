"""`reference`: the statistics of a set of images, to score other images against."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bdia_exp import dist
from bdia_exp.console import say
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.jobs.scoring import image_set, require_replaceable, require_size, score_set
from bdia_exp.jobs.settings import Computing
from bdia_exp.metrics.features import Extractor
from bdia_exp.metrics.frechet import require_enough
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.store import records
from bdia_exp.verbs import Verb


@dataclass(frozen=True, kw_only=True)
class ReferenceSet(Computing):
    """A set of images, and the features for its statistics."""

    images: str
    out: str
    features: Choice[Callable[..., Extractor]]
    keep: bool
    resize: int | None
    limit: int | None


def reference(asked: ReferenceSet) -> Statistics:
    """Writes the statistics of a set of images, an npz to give as `reference=`. Returns them."""
    device = dist.device(asked.device)
    require_size(asked.resize)
    found = image_set(asked.images, asked.limit)
    name = asked.out if asked.out.lower().endswith(".npz") else f"{asked.out}.npz"
    file = Path(name).expanduser()
    require_replaceable(file, _is_ours, "an earlier result of `reference`")
    count = len(found.first(asked.limit))
    dist.start(device)
    extractor = asked.features.make(device=device)
    require_enough(count, extractor.dim)
    scorer = Score(extractor, None, keep=asked.keep, blocks=1, resize=asked.resize)
    notes = score_set(scorer, found, count, asked.batch)
    statistics = scorer.statistics()
    assert statistics.meta is not None
    statistics.meta |= {"images": str(found.path), "notes": notes, **records.provenance()}
    if dist.rank() == 0:
        statistics.save(file)
        say(f"{file}: {scorer.note}, statistics of {statistics.count} images")
    dist.barrier()
    return statistics


def _is_ours(file: Path) -> bool:
    """Whether a file has statistics that `reference` wrote."""
    try:
        return {"features", "sha256", "commit"} <= (Statistics.load(file).meta or {}).keys()
    except UserError:
        return False


VERB = Verb(reference, ReferenceSet)
