"""The reference of a score, and whether two scores have the same one."""

from dataclasses import fields
from functools import lru_cache
from pathlib import Path

from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import as_key
from bdia_exp.jobs.identity import plainly
from bdia_exp.jobs.settings import Scoring
from bdia_exp.metrics.moments import sha256_of_numbers
from bdia_exp.sources import checkpoints
from bdia_exp.store.image_sets import ImageSet, is_image_set
from bdia_exp.store.records import Record

NO_REFERENCE = (
    "a FID needs statistics of real images: make them with `bdia-exp reference IMAGES out=FILE` "
    "(CIFAR-10's with `make cifar10`), or give another reference="
)


def located(reference: str | None) -> Path:
    """The file of a reference, or its folder of images. Raises UserError if it is missing."""
    if reference is None:
        raise UserError("give reference=: an npz of statistics (mu, sigma) to score against")
    return checkpoints.locate(reference, NO_REFERENCE)


def require_statistics(reference: str | None) -> Path:
    """The file of a reference. Raises UserError if it is missing, or is not of statistics."""
    path = located(reference)
    if is_image_set(path):
        raise UserError(
            f"reference={reference} is of images, and each process would read them: make "
            "their statistics with `bdia-exp reference IMAGES out=FILE`, and give reference=FILE"
        )
    return path


def same_score(record: Record, asked: Scoring) -> bool:
    """Whether a record has the same settings of the score as `asked`, and the same reference.

    Older records, and a reference that is not on this machine, are known by the name alone.
    """
    keys = [as_key(field.name) for field in fields(Scoring)]
    old, now = record["config"], asked.plain()
    if plainly({k: old.get(k) for k in keys}) != plainly({k: now[k] for k in keys}):
        return False
    then, here = record.get("reference_sha256"), reference_sha256(asked.reference)
    return not (then and here) or then == here


def reference_sha256(name: str | None) -> str | None:
    """The sha256 of a reference; None if it is not here.

    It is that of the numbers of statistics, so those of the same images, made again, are the same
    reference. It is that of the pictures of a folder, and else that of the file.
    """
    path = checkpoints.present(name) if name else None
    if not path:
        return None
    if path.is_dir():
        return ImageSet(path).sha256()
    return _of_numbers(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache
def _of_numbers(path: Path, size: int, changed: int) -> str:
    try:
        return sha256_of_numbers(path)
    except OSError:
        return checkpoints.sha256(path)
