"""The Fréchet distance of two Gaussians: FID, for any features."""

from collections.abc import Iterable

import numpy as np

from bdia_exp.errors import UserError
from bdia_exp.metrics.moments import Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), in the features' units squared [EDM fid].

    With Σ = R Rᵀ, (Σ_a Σ_b)^½ has the trace of (R_bᵀ R_a R_aᵀ R_b)^½, that is, the sum of the
    singular values of R_aᵀ R_b: well-conditioned problems, without a square root of an unsymmetric
    matrix. The distance is finite for a singular covariance (`rank` detects one).

    Raises UserError if the dimensions differ, or if a set has too few images for a covariance of
    full rank (count ≤ D), or if the distance is not finite.
    """
    if a.dim != b.dim:
        raise UserError(f"FID compares features of one kind, not of {a.dim} and {b.dim} dimensions")
    for stats in (a, b):
        require_enough(stats.count, stats.dim)
    overlap = np.linalg.svd(root(a.cov).T @ root(b.cov), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    if not np.isfinite(distance):
        raise UserError("FID is not a finite number: the features or the statistics are wrong")
    return max(float(distance), 0.0)


def root(cov: np.ndarray) -> np.ndarray:
    """A matrix R with R Rᵀ = cov, [D, D]: Cholesky's; of a singular covariance one from its axes,
    where eigenvalues below 0, which rounding leaves, count as 0."""
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        values, axes = np.linalg.eigh(cov)
        return axes * np.sqrt(values.clip(0))


BLOCKS = 20
"""Blocks of images, by their seeds modulo 20, for the interval of a FID (`report.statistics`)."""


def sums_size(dim: int) -> int:
    """Bytes of the sums of features for a FID with its interval (`sums.FeatureMoments`)."""
    return 2 * BLOCKS * dim**2 * 8


def frechet_distances(many: Iterable[Statistics], b: Statistics) -> list[float]:
    """`frechet_distance` of many sets from one, for their differences: not clipped at 0.

    Each needs one eigenvalue problem, that of Rᵀ Σ_a R with Σ_b = R Rᵀ. Its rounding errors are
    larger, up to 1e-6 of the trace, but nearly equal for similar sets.
    """
    of_b = root(b.cov)
    return [
        float(
            np.square(a.mean - b.mean).sum()
            + a.cov.trace()
            + b.cov.trace()
            - 2 * np.sqrt(np.linalg.eigvalsh(of_b.T @ a.cov @ of_b).clip(0)).sum()
        )
        for a in many
    ]


def require_enough(count: int | None, dim: int) -> None:
    """Raises UserError if `count` images cannot have a covariance of full rank (count ≤ D)."""
    if count is not None and count <= dim:
        raise UserError(
            f"FID in {dim} dimensions needs at least {dim + 1} images; there are {count}"
        )


def rank(stats: Statistics) -> int:
    """The numerical rank of the covariance. Below D it is singular, and FID is not reliable."""
    return int(np.linalg.matrix_rank(stats.cov, hermitian=True))
