"""Runs of shards: this process makes its share of what is missing, and all of it is added up."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bdia_exp import dist
from bdia_exp.console import progress
from bdia_exp.errors import UserError, few
from bdia_exp.jobs.references import same_score
from bdia_exp.jobs.sampling import Batch, Job, Places, stream
from bdia_exp.jobs.settings import Sampling
from bdia_exp.metrics import measured
from bdia_exp.metrics.measured import Measured
from bdia_exp.metrics.score import Score
from bdia_exp.store import journals, records
from bdia_exp.store.images import save_sheet
from bdia_exp.store.journals import Journal
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder
from bdia_exp.store.shards import Shard, Shards

KEEPING = ("folder", "zip", "shards")
"""What an earlier start saved, and save=null goes on with."""


def settled(asked: Sampling, root: Path, before: Record) -> Sampling:
    """The settings with `save`: if it was not given, as in the folder's record, else as usual.

    A folder that has its images keeps them with save=none, too. Raises UserError if the folder has
    its images in another form that this run cannot go on with.
    """
    config = before.get("config", {})
    then = config.get("save")
    wish = None if asked.save == "none" and then in KEEPING else asked.save
    save = wish or (then if then in KEEPING and not asked.part else asked.usual_save)
    unfinished = then == "scratch" and not before.get("complete")
    if (then in (*KEEPING, "latents") or unfinished) and then != save and "shards" in (then, save):
        raise UserError(
            f"{root} has its images with save={then}: leave save= and part= out, or choose another "
            "out= (`bdia-exp export` writes images in another form)"
        )
    if then == save == "shards" and config.get("shard") != asked.shard:
        raise UserError(
            f"{root} has shards of {config.get('shard')} seeds: give shard={config.get('shard')}, "
            "or choose another out="
        )
    return replace(asked, save=save)


def require_same_part(asked: Sampling, run: RunFolder, scorer: Score | None) -> None:
    """Raises UserError unless a part has the settings of the parts that were begun before it."""
    config = run.record["config"]
    same = bool(config.get("score")) == asked.score and config.get("shard") == asked.shard
    if scorer:
        same = (
            same and same_score(run.record, asked) and run.record.get("features") == about(scorer)
        )
    if config.get("save") != "shards" or not same:
        raise UserError(
            f"{run.root} was begun with other settings of the shards or of the score: give the "
            "same save=, shard=, score=, metrics=, features= and reference= for every part"
        )


def about(scorer: Score) -> Record:
    """What a record says of the networks that measure."""
    by_prompt = "prompt" in scorer.metrics
    return measured.description(scorer.extractor, scorer.resize, scorer.clip, by_prompt)


def suffixes(record: Record) -> list[str]:
    """The ends of the names of the files that a shard of this run has beside its zip."""
    described = record.get("features")
    return [measured.suffix(described)] if record["config"].get("score") and described else []


def make(
    job: Job, run: RunFolder, places: Places, asked: Sampling, scorer: Score | None
) -> list[Shard]:
    """Makes this rank's share of the missing shards, measured if there is a scorer.

    Whole shards are shared among the ranks, and no rank waits for another. Returns the shards that
    all ranks make.
    """
    shards, ends = places.images, suffixes(run.record) if scorer else []
    assert isinstance(shards, Shards)
    shards.manifest.refresh()

    def begun() -> tuple[list[Shard], int | None, list[Record]]:
        nfe = run.record.get("nfe") or journals.nfe(run.root)
        starts = journals.starts(run.root, asked.piece)
        journals.remove(run.root, asked.piece)
        shards.remove_old_parts()
        return shards.missing(*ends), nfe, starts

    todo, nfe, starts = dist.by_rank_0(begun)
    mine = todo[dist.rank() :: dist.world()]
    journal = Journal(run.root, asked.piece, nfe, [*starts, *([run.made] if todo else [])])
    sizes = sum(len(shard.seeds) for shard in todo)
    notes: list[dict[str, np.ndarray]] = []
    with ExitStack() as stack:
        bar = stack.enter_context(progress(sizes, "img"))
        stack.enter_context(shards)
        stack.enter_context(journal)
        batches = stream(job, _batches(mine, asked.batch), places, bar)
        for made in stack.enter_context(closing(batches)):
            shard = shards.of(made.seeds[0])
            if made.nfe is not None:
                journal.sampled, journal.nfe = journal.sampled + len(made.seeds), made.nfe
            if scorer:
                notes.append(_measured(job, scorer, made))
            if made.seeds[-1] == shard.seeds[-1]:
                if scorer:
                    keys = notes[0].keys()
                    whole = {key: np.concatenate([note[key] for note in notes]) for key in keys}
                    shards.keep(shard, ends[0], whole)
                    notes.clear()
                journal.write()
    return todo


def _batches(shards: Sequence[Shard], size: int) -> Iterator[list[int]]:
    """The seeds of the shards, in batches that never have seeds of two shards."""
    for shard in shards:
        for start in range(0, len(shard.seeds), size):
            yield shard.seeds[start : start + size]


def _measured(job: Job, scorer: Score, made: Batch) -> dict[str, np.ndarray]:
    """What is kept of a scored batch, by name."""
    assert made.images is not None
    texts = job.texts.prompts_of(made.seeds) if job.texts else None
    found = scorer.measure(made.images, texts).arrays()
    return found | ({} if made.labels is None else {"labels": made.labels.cpu().numpy()})


def added_up(run: RunFolder, shards: Shards, scorer: Score | None, sheet: Sequence[int]) -> Record:
    """The numbers of a run whose shards are all there, from the disk; also merges its lists.

    Writes the contact sheet of the seeds `sheet`. Rank 0 does it alone, shard after shard, so the
    numbers do not depend on the number of processes. If a file is damaged, it is put aside, and a
    UserError says to make it again.
    """
    shards.merge()
    numbers = journals.totals(run.root)
    numbers["nfe"] = run.record.get("nfe") or journals.nfe(run.root)
    known = [*records.starts(run.record), *journals.starts(run.root)]
    numbers |= records.earlier(records.made(run.record), known)
    if scorer:
        numbers["score"] = _score(run, shards, scorer)
    pictures = []
    for seed in sheet:
        picture = shards.read([seed])
        if picture is None:
            _give_up(shards, [shards.file(shards.of(seed))])
        else:
            pictures.append(picture[0])
    save_sheet(run.root / "sheet.png", pictures)
    journals.remove(run.root)
    return numbers


def _score(run: RunFolder, shards: Shards, scorer: Score) -> dict[str, Any]:
    (end,), damaged = suffixes(run.record), []
    for shard in shards.all:
        try:
            arrays = shards.kept(shard, end)
        except OSError:
            damaged.append(shards.file(shard, end))
            continue
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        scorer.add(Measured.of(arrays), labels, [*shard.seeds])
    if damaged:
        _give_up(shards, damaged)
    return scorer.result()


def _give_up(shards: Shards, damaged: list[Path]) -> None:
    shards.put_aside(damaged)
    names = few(file.name for file in damaged)
    raise UserError(
        f"{shards.root}: {names} was damaged and is now NAME.damaged: run the same `sample` again "
        "to make it again"
    )
