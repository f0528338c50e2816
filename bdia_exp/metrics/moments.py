"""Mean and covariance of features, and their files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bdia_exp.errors import UserError
from bdia_exp.store.files import atomic


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
        try:
            with open(path, "rb") as file:
                archive = np.load(file, allow_pickle=False)
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise UserError(f"{path} is not an .npz file of statistics")
                arrays = {name: archive[name] for name in archive.files}
        except FileNotFoundError as e:
            raise UserError(f"{path} does not exist: give an .npz of reference statistics") from e
        except UserError:
            raise
        except Exception as e:  # damaged bytes can cause any exception, MemoryError too
            # numpy's own message would advise to load a pickle
            raise UserError(f"{path} cannot be read as an .npz of statistics") from e

        if absent := {"mu", "sigma"} - arrays.keys():
            raise UserError(f"{path} lacks {' and '.join(sorted(absent))}; it has {list(arrays)}")
        mean, cov = arrays["mu"], arrays["sigma"]
        if mean.ndim != 1 or cov.shape != 2 * mean.shape:
            raise UserError(
                f"{path} holds mu {list(mean.shape)} and sigma {list(cov.shape)}, not [D], [D, D]"
            )
        if mean.dtype.kind not in "iuf" or cov.dtype.kind not in "iuf":
            raise UserError(f"{path} holds mu and sigma that are not real numbers")
        mean, cov = mean.astype(np.float64), cov.astype(np.float64)
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise UserError(f"{path} holds NaN or infinity in mu or sigma")
        try:
            count = int(arrays["count"]) if "count" in arrays else None
            meta = json.loads(str(arrays["meta"])) if "meta" in arrays else None
        except (TypeError, ValueError) as e:
            raise UserError(f"{path} holds a count or meta that cannot be read: {e}") from e
        if not isinstance(meta, dict | None):
            raise UserError(f"{path} holds a meta that is not an object")
        if (cov.diagonal() < 0).any() or not np.allclose(cov, cov.T, atol=1e-6 * abs(cov).max()):
            raise UserError(f"{path} holds a sigma that is no covariance: it must be symmetric")
        features = arrays.get("features")
        if features is not None and (
            features.dtype != np.float32 or features.shape[1:] != mean.shape
        ):
            raise UserError(f"{path} holds features that are not float32 [N, {len(mean)}]")
        return cls(mean, cov, count, meta, features)
