"""Makes a scorer from settings, and scores a set of images."""

import torch

from bdia_exp import dist
from bdia_exp.console import positive, progress
from bdia_exp.errors import UserError
from bdia_exp.extras import require
from bdia_exp.jobs.settings import Scoring
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.sources import checkpoints
from bdia_exp.store.image_sets import ImageSet, is_image_set


def scorer_of(asked: Scoring, device: str, batch: int) -> Score:
    """A scorer with its reference: an npz with mu and sigma, or images to compute them from.

    Raises UserError if there is no reference, or if it cannot be used.
    """
    require_size(asked.resize)
    if asked.reference is None:
        raise UserError("give reference=: an npz of statistics (mu, sigma) to score against")
    extractor = asked.features.make(device=device)
    path = checkpoints.locate(asked.reference)
    metrics = listed(asked.metrics)
    score = Score(extractor, None, metrics, resize=asked.resize, clip=asked.clip)
    if not is_image_set(path):
        score.compare_with(Statistics.load(path))
        return score
    keep = bool({"kid", "prc"} & {*score.metrics})
    real = Score(extractor, None, keep=keep, resize=asked.resize)
    found = ImageSet(path)
    score_set(real, found, len(found), batch)
    score.compare_with(real.statistics())
    return score


def score_set(
    scorer: Score,
    found: ImageSet,
    count: int,
    batch: int,
    prompts: list[str] | None = None,
) -> None:
    """Scores this rank's share of the first `count` images, with their prompts if given."""
    starts = range(0, count, batch)[dist.rank() :: dist.world()]
    with progress(count, "img") as bar:
        for start in starts:
            rows = range(start, min(start + batch, count))
            labels = None if found.labels is None else torch.tensor(found.labels)[list(rows)]
            # If images are resized, they may have any sizes; only one batch is in memory.
            pictures = found.read_each(rows) if scorer.resize else found.read(rows)
            texts = prompts and [prompts[row] for row in rows]
            scorer.update(pictures, labels, rows, texts)
            bar.update(len(rows) * dist.world())


def image_set(images: str) -> ImageSet:
    """The images at a path, or in a published file (`fetch:FILE`)."""
    published = images.startswith("fetch:")
    return ImageSet(checkpoints.locate(images) if published else images)


def listed(metrics: list[str] | str | None) -> list[str]:
    """The names of metrics as a list."""
    return metrics.split(",") if isinstance(metrics, str) else metrics or []


def require_size(resize: int | None) -> None:
    """Raises UserError if images cannot be resized to `resize` pixels; None: not resized."""
    if resize is not None:
        positive("resize", resize, most=8192)
        require("cv2")
