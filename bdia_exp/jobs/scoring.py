"""Makes a scorer from settings, and scores a set of images."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType

import torch

from bdia_exp import dist
from bdia_exp.console import positive, progress, say
from bdia_exp.errors import UserError
from bdia_exp.extras import require
from bdia_exp.jobs.references import located, reference_sha256, require_statistics
from bdia_exp.jobs.settings import Comparing
from bdia_exp.metrics.measured import ABOUT, Known
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.overrides import listed
from bdia_exp.sources import checkpoints, fetch
from bdia_exp.store import records
from bdia_exp.store.image_sets import ImageSet, is_image_set
from bdia_exp.store.records import Record


def scorer_of(
    asked: Comparing,
    device: str,
    batch: int,
    metrics: Sequence[str] = ("fid",),
    clip: str | None = None,
) -> Score:
    """A scorer with its reference: an npz with mu and sigma, or images to compute them from.

    Raises UserError if there is no reference, or if it cannot be used.
    """
    require_size(asked.resize)
    path = located(asked.reference)
    extractor = asked.features.make(device=device)
    score = Score(extractor, None, metrics, resize=asked.resize, clip=clip)
    if not is_image_set(path):
        score.compare_with(Statistics.load(path))
        return score
    keep = bool({"kid", "prc"} & {*score.metrics})
    real = Score(extractor, None, keep=keep, blocks=1, resize=asked.resize)
    score.compare_with(_of_reference(real, image_set(str(path)), batch))
    return score


def recorded_scorer(record: Record) -> Score | None:
    """A scorer for what a run of `sample` has measured; None if the run is not scored.

    It needs the reference, but no network. Raises UserError if the record is not of such a run.
    """
    config, about = record["config"], record.get("features")
    if not config.get("score"):
        return None
    try:
        if not isinstance(about, dict) or not {*ABOUT, "resize"} <= about.keys():
            raise ValueError("it lacks some of what it needs")
        records.require_types(about, {"resize": (int, NoneType)})
        known = Known.of(about)
        clip = Known.of(about["clip"]) if about.get("clip") else None
    except ValueError as error:
        raise UserError(
            f"record.json does not say with what its images are scored ({error}): run it again"
        ) from None
    path, then = require_statistics(config.get("reference")), record.get("reference_sha256")
    if then and reference_sha256(str(path)) != then:
        raise UserError(
            f"reference={config['reference']} has other content than when the run was begun: bring "
            "the old file back, or run `sample` again to score against the new one"
        )
    return Score(
        known,
        Statistics.load(path),
        listed(config.get("metrics")),
        resize=about["resize"],
        clip=clip,
    )


CONVENTIONS = 1
"""The version of how images become features: part of the names of the statistics in the cache."""


def _of_reference(real: Score, found: ImageSet, batch: int) -> Statistics:
    """The statistics of a reference set, from the cache if it has those of the same content.

    Else they are computed, and kept there if it can be written.
    """
    path, known = None, None
    if dist.rank() == 0:
        extractor = real.extractor
        about = [
            CONVENTIONS,
            found.sha256(),
            extractor.sha256,
            real.resize,
            real.samples is not None,
        ]
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        path = fetch.cache() / "references" / f"{extractor.name}-{digest}.npz"
        known = _kept(path)
    known = dist.broadcast(known)
    if known is not None:
        for note in (known.meta or {}).get("notes", []):
            say(f"note: {found.path}: {note}")
        return known
    notes = score_set(real, found, len(found), batch)
    made = real.statistics()
    if path:
        try:
            replace(made, meta={**(made.meta or {}), "notes": notes}).save(path)
        except UserError as error:
            say(f"note: the statistics of {found.path} are not kept for the next run: {error}")
    return made


def _kept(path: Path) -> Statistics | None:
    """The statistics in a file of the cache; None if it is not there or is damaged."""
    try:
        return Statistics.load(path)
    except UserError:
        return None


def score_set(
    scorer: Score,
    found: ImageSet,
    count: int,
    batch: int,
    prompts: list[str] | None = None,
) -> list[str]:
    """Scores this rank's share of the first `count` images, with their prompts if given.

    Prints and returns what was left out of the set or changed in it, in sentences.
    """
    starts = range(0, count, batch)[dist.rank() :: dist.world()]
    with progress(count, "img") as bar:
        for start in starts:
            rows = range(start, min(start + batch, count))
            labels = None if found.labels is None else torch.tensor(found.labels[start : rows.stop])
            # If images are resized, they may have any sizes; only one batch is in memory.
            pictures = found.read_each(rows) if scorer.resize else found.read(rows)
            texts = prompts and [prompts[row] for row in rows]
            scorer.update(pictures, labels, rows, texts)
            bar.update(len(rows) * dist.world())
    notes = found.remarks(sum(dist.gather(found.transparent)))
    for note in notes:
        say(f"note: {found.path}: {note}")
    return notes


def image_set(images: str, limit: int | None = None) -> ImageSet:
    """The images at a path, or in a published file (`fetch:FILE`).

    Raises UserError for a run that has not all its images, unless a `limit` says how many to use.
    """
    published = images.startswith("fetch:")
    found = ImageSet(checkpoints.locate(images) if published else images)
    if limit is None and found.path.name in ("images", "images.zip", "shards"):
        run = records.load(found.path.parent / "record.json") or {}
        wanted = run.get("images")
        if isinstance(wanted, int) and (not run.get("complete") or len(found) != wanted):
            raise UserError(
                f"{found.path.parent} is not complete, {len(found)} of {wanted} images are there: "
                "run it again to its end, or give limit= to use only the first images"
            )
    return found


def require_replaceable(file: Path, ours: Callable[[Path], bool], what: str) -> None:
    """Raises UserError unless a verb may write its result to `file`.

    An existing file is replaced only if it is `ours`, an earlier result of the same verb: `what`.
    """
    try:
        file.lstat()
    except FileNotFoundError:
        there = next(path for path in file.absolute().parents if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"out={file}: {there} is no folder to write to") from None
    except (OSError, ValueError) as error:  # too long, in a file, or with NUL
        raise UserError(f"out= is no name of a file ({error}): choose another") from None
    else:
        if not (file.is_file() and ours(file)):
            raise UserError(f"out={file} is there and is not {what}: choose another name")


def require_size(resize: int | None) -> None:
    """Raises UserError if images cannot be resized to `resize` pixels; None: not resized."""
    if resize is not None:
        positive("resize", resize, most=8192)
        require("cv2")
