"""The Fréchet distance of two Gaussians: FID, for whichever features they were fitted to."""

import numpy as np

from bdia_exp.errors import UserError
from bdia_exp.metrics.moments import Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), in the features' units squared [EDM fid].

    (Σ_a Σ_b)^½ has the trace of (Σ_a^½ Σ_b Σ_a^½)^½, that is, the sum of the singular values of
    Σ_a^½ Σ_b^½. So two symmetric eigenvalue problems and one of singular values do, all well
    conditioned; no square root is taken of an unsymmetric matrix, and a singular covariance gives
    a finite distance. `rank` tells whether there is one.

    Raises UserError if the dimensions differ, or a sample is too small for a covariance of full
    rank (count ≤ D).
    """
    if a.dim != b.dim:
        raise UserError(f"FID compares features of one kind, not of {a.dim} and {b.dim} dimensions")
    for stats in (a, b):
        require_enough(stats.count, stats.dim)
    va, va_axes = np.linalg.eigh(a.cov)
    vb, vb_axes = np.linalg.eigh(b.cov)
    va, vb = va.clip(0), vb.clip(0)  # rounding can leave −1e-17
    root = np.sqrt(va)[:, None] * (va_axes.T @ vb_axes) * np.sqrt(vb)  # Σ_a^½ Σ_b^½, in their axes
    overlap = np.linalg.svd(root, compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + va.sum() + vb.sum() - 2 * overlap
    return max(float(distance), 0.0)


def require_enough(count: int | None, dim: int) -> None:
    """Raises UserError if `count` images cannot have a covariance of full rank (count ≤ D)."""
    if count is not None and count <= dim:
        raise UserError(
            f"FID in {dim} dimensions needs at least {dim + 1} images; there are {count}"
        )


def rank(stats: Statistics) -> int:
    """The numerical rank of the covariance; below D, it is singular and FID untrustworthy."""
    return int(np.linalg.matrix_rank(stats.cov, hermitian=True))
