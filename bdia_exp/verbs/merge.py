"""`merge`: adds up the shards that the parts of a run made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bdia_exp.console import say
from bdia_exp.errors import UserError, few
from bdia_exp.jobs import sharding
from bdia_exp.jobs.asked import Asked
from bdia_exp.jobs.scoring import recorded_scorer
from bdia_exp.report import scores
from bdia_exp.store import journals
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder
from bdia_exp.store.shards import Part, Shard, Shards
from bdia_exp.verbs import Verb


@dataclass(frozen=True, kw_only=True)
class Merging(Asked):
    """The folder of a run."""

    run: str


def merge(asked: Merging) -> Record:
    """Completes a run whose shards are all there. Returns the record that it wrote."""
    run = RunFolder.of_run(asked.run)
    ends = sharding.suffixes(run.before)
    shards = Shards.of_run(run.root, run.before)
    if run.complete and not shards.missing(*ends):
        say(f"{run.root} is complete: nothing to do")
        return run.before
    run.resume()
    try:
        shards = Shards.of_run(run.root, run.before)  # also what was made before it was locked
        if missing := shards.missing(*ends):
            raise UserError(_incomplete(run.root, shards, missing))
        scorer = recorded_scorer(run.record)
        sheet = shards.wanted[: run.record["config"].get("sheet", 0)]
        record = run.finish(sharding.added_up(run, shards, scorer, sheet))
    finally:
        run.leave()
    say(f"{run.root}: {len(shards.wanted)} images of {len(shards.all)} shards")
    if scorer:
        say(scores.sentence(record["score"]))
    return record


def _incomplete(root: Path, shards: Shards, missing: Sequence[Shard]) -> str:
    """What is missing, and how it is made."""
    places = [shards.all.index(shard) for shard in missing]
    how = "the same `sample` again"
    counts = {Part.parse(part).count for one in journals.read(root) if (part := one.get("part"))}
    if len(counts) == 1:
        (count,) = counts
        how = "part=" + few(f"{i}/{count}" for i in sorted({place % count + 1 for place in places}))
    return (
        f"{root} is not complete: {len(missing)} of {len(shards.all)} shards are missing "
        f"(seeds {few(_ranges(missing))}): run {how}, then merge again"
    )


def _ranges(missing: Sequence[Shard]) -> list[str]:
    """The seeds of shards as text, with neighbours joined."""
    found: list[list[int]] = []
    for shard in missing:
        first, last = shard.seeds[0], shard.seeds[-1]
        if found and found[-1][1] + 1 == first:
            found[-1][1] = last
        else:
            found.append([first, last])
    return [f"{first}-{last}" for first, last in found]


VERB = Verb(merge, Merging)
