"""Mean and covariance of features, and their files."""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bdia_exp.errors import UserError
from bdia_exp.store.arrays import Arrays
from bdia_exp.store.files import atomic

TINY = 1e-290  # a covariance of zeros is also one


@dataclass(eq=False)  # not frozen: torchmetrics cannot return a frozen one
class Statistics:
    """The Gaussian fitted to the features of a set of images, for the Fréchet distance.

    mean [D] and cov [D, D] are float64; cov is divided by count − 1 [EDM fid]. `count` is the
    number of images, None in files of other programs. `meta` (plain JSON) names the features and
    the images. `features`, float32 [count, D], are those of every image, for metrics that need
    them (KID, precision and recall); None unless they were kept.
    """

    mean: np.ndarray
    cov: np.ndarray
    count: int | None = None
    meta: dict[str, Any] | None = None
    features: np.ndarray | None = None

    @property
    def dim(self) -> int:
        return len(self.mean)

    def save(self, path: str | Path) -> None:
        """Writes the usual .npz: `mu` and `sigma`; and also `count`, `meta` and `features`."""
        arrays: dict[str, Any] = {"mu": self.mean, "sigma": self.cov}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        if self.meta is not None:
            arrays["meta"] = np.array(json.dumps(self.meta))
        if self.features is not None:
            arrays["features"] = self.features
        with atomic(Path(path)) as part, part.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Reads an .npz with `mu` [D] and `sigma` [D, D]. Nothing in the file is executed.

        Raises UserError if the file is missing, is not an .npz, or has a wrong shape or number.
        """
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: give an .npz of reference statistics")
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not an .npz: it cannot be read as statistics")
        try:
            arrays = Arrays(Path(path))
            if absent := {"mu", "sigma"} - {*arrays.names}:
                holds = f"; it has {arrays.names[:9]}"
                raise UserError(f"{path} lacks {' and '.join(sorted(absent))}{holds}")
            stated = {key: arrays[key] for key in KEYS if key in arrays}
            _require_shapes(path, {key: array.shape for key, array in stated.items()})
            found = {key: array.whole() for key, array in stated.items()}
        except OSError as error:
            raise UserError(f"{path} cannot be read as an .npz of statistics: {error}") from None
        mean, cov = (_real(path, key, found[key]) for key in ("mu", "sigma"))
        _require_covariance(path, cov)
        features = found.get("features")
        if features is not None and not (
            features.dtype == np.float32 and np.isfinite(features).all()
        ):
            raise UserError(f"{path} holds features that are not finite float32")
        count = _count(path, found["count"]) if "count" in found else None
        if features is not None and count not in (None, len(features)):
            raise UserError(
                f"{path} holds features of {len(features)} images, its count is {count}"
            )
        return cls(mean, cov, count, _meta(path, found.get("meta")), features)


def sha256_of_numbers(path: str | Path) -> str:
    """The sha256 of mu and sigma in float64: equal for files whose descriptions alone differ.

    Raises OSError if the file has no such numbers.
    """
    arrays, digest = Arrays(Path(path)), hashlib.sha256()
    for key in ("mu", "sigma"):
        array = arrays[key]
        if array.dtype.kind not in "iuf":
            raise OSError(f"{key} is not of real numbers")
        digest.update(array.whole().astype("<f8").tobytes())
    return digest.hexdigest()


KEYS = ("mu", "sigma", "count", "meta", "features")


def _require_shapes(path: str | Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError unless the arrays of a file fit together; they are not in memory yet."""
    mean, cov = shapes["mu"], shapes["sigma"]
    if len(mean) != 1 or cov != 2 * mean or 0 in mean:
        raise UserError(f"{path} holds mu {list(mean)} and sigma {list(cov)}, not [D], [D, D]")
    for key in ("count", "meta"):
        if shapes.get(key, ()) != ():
            raise UserError(f"{path} holds a {key} that is an array of {list(shapes[key])}")
    if shapes.get("features", (0, *mean))[1:] != mean:
        raise UserError(f"{path} holds features that are not float32 [N, {mean[0]}]")


def _real(path: str | Path, key: str, array: np.ndarray) -> np.ndarray:
    """The numbers in float64. Raises UserError unless they are real and their squares finite."""
    if array.dtype.kind not in "iuf":
        raise UserError(f"{path} holds mu and sigma that are not real numbers")
    array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        if not np.isfinite(np.square(array).sum()):
            raise UserError(f"{path} holds NaN or infinity in {key}, or numbers above 1e150")
    return array


def _require_covariance(path: str | Path, cov: np.ndarray) -> None:
    """Raises UserError unless a matrix is symmetric without negative eigenvalues, up to rounding.

    The tolerance for an eigenvalue is 1e-5 of the matrix's norm: float32's rounding is below it.
    """
    if not np.allclose(cov, cov.T, atol=1e-6 * abs(cov).max()):
        raise UserError(f"{path} holds a sigma that is no covariance: it must be symmetric")
    try:
        np.linalg.cholesky(cov + (1e-5 * np.linalg.norm(cov) + TINY) * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        raise UserError(
            f"{path} holds a sigma that is no covariance: it has negative eigenvalues; make the "
            "statistics again"
        ) from None


def _count(path: str | Path, array: np.ndarray) -> int:
    """The number of images. Raises UserError unless it is a whole number above 0."""
    if array.dtype.kind not in "iuf" or not float(array).is_integer() or array < 1:
        raise UserError(f"{path} holds a count that is not a whole number of images: {array}")
    return int(array)


def _meta(path: str | Path, array: np.ndarray | None) -> dict[str, Any] | None:
    """The description. Raises UserError unless it is the text of a JSON object."""
    try:
        meta = None if array is None else json.loads(str(array))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds a meta that cannot be read: {error}") from None
    if not isinstance(meta, dict | None):
        raise UserError(f"{path} holds a meta that is not an object")
    return meta
