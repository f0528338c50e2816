"""Whether a run of `sample` needs no more work."""

from bdia_exp import dist
from bdia_exp.jobs import sharding
from bdia_exp.jobs.references import same_score
from bdia_exp.jobs.sampling import Places
from bdia_exp.jobs.settings import Sampling
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder
from bdia_exp.store.shards import Shards


def finished(asked: Sampling, run: RunFolder) -> bool:
    """Whether an earlier start made all that is asked, and the files that it kept are there.

    `asked` is `sharding.settled`. Every rank must ask.
    """
    return run.complete and _as_before(asked, run.before) and _whole(asked, run)


def _as_before(asked: Sampling, record: Record) -> bool:
    """Whether a complete run saved its images in the same way, and has the score if asked."""
    if record["config"].get("save") != asked.save:
        return False
    return not asked.score or bool(record["config"].get("score") and same_score(record, asked))


def _whole(asked: Sampling, run: RunFolder) -> bool:
    """Whether the files that a complete run keeps are there, as it wrote them."""
    places = Places.of(run.root, asked)

    def found() -> bool:
        if isinstance(places.images, Shards):
            ends = sharding.suffixes(run.before) if asked.score else []
            return not places.images.missing(*ends, among=places.images.all)
        kept = {"folder": places.images, "zip": places.images, "latents": places.latents}
        files = kept.get(str(asked.save))
        return files is None or files.has(asked.wanted)

    return dist.by_rank_0(found)
