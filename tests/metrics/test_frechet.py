"""The Fréchet distance against closed forms, and against scipy's square root of a matrix."""

import numpy as np
import pytest
import scipy.linalg

from bdia_exp.errors import UserError
from bdia_exp.metrics.frechet import frechet_distance, frechet_distances, rank
from bdia_exp.metrics.moments import Statistics

D = 12
RNG = np.random.default_rng(0)


def covariance(images: int = 50) -> np.ndarray:
    """Of random correlated features; singular if there are no more images than dimensions."""
    return np.cov(RNG.normal(size=(images, D)) @ RNG.normal(size=(D, D)), rowvar=False)


def literal(a: Statistics, b: Statistics) -> float:
    """The formula as EDM's fid.py computes it."""
    root = scipy.linalg.sqrtm(a.cov @ b.cov)
    return np.square(a.mean - b.mean).sum() + np.trace(a.cov + b.cov - 2 * np.real(root))


def test_of_a_sample_with_itself_is_zero():
    for cov in (covariance(), covariance(5), np.zeros((D, D))):
        a = Statistics(RNG.normal(size=D), cov)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * (1 + np.trace(cov)))


def test_diagonal_gaussians():
    s, t, m = RNG.random(D), RNG.random(D), RNG.normal(size=D)
    a, b = Statistics(m, np.diag(s**2)), Statistics(np.zeros(D), np.diag(t**2))
    assert frechet_distance(a, b) == pytest.approx((m**2).sum() + ((s - t) ** 2).sum(), rel=1e-12)


def test_one_dimension():
    a, b = Statistics(np.array([1.0]), np.array([[4.0]])), Statistics(np.zeros(1), np.eye(1) * 9)
    assert frechet_distance(a, b) == pytest.approx(1 + (2 - 3) ** 2)


def test_equal_covariances_leave_the_means():
    cov, m = covariance(), RNG.normal(size=D)
    a, b = Statistics(m, cov), Statistics(np.zeros(D), cov)
    assert frechet_distance(a, b) == pytest.approx((m**2).sum(), rel=1e-10)


def test_scaled_covariance():
    cov = covariance()
    a, b = Statistics(np.zeros(D), cov), Statistics(np.zeros(D), 9 * cov)
    assert frechet_distance(a, b) == pytest.approx((3 - 1) ** 2 * np.trace(cov), rel=1e-12)


def test_symmetric_and_unmoved_by_rotation():
    a, b = Statistics(RNG.normal(size=D), covariance()), Statistics(np.zeros(D), covariance())
    q = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    ra, rb = (Statistics(q @ s.mean, q @ s.cov @ q.T) for s in (a, b))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(ra, rb) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_agrees_with_sqrtm():
    a, b = Statistics(RNG.normal(size=D), covariance()), Statistics(np.zeros(D), covariance())
    assert frechet_distance(a, b) == pytest.approx(literal(a, b), rel=1e-10)


def test_agrees_with_sqrtm_near_singular():
    thin = covariance(5)
    a = Statistics(RNG.normal(size=D), thin + 1e-10 * np.eye(D))
    b = Statistics(np.zeros(D), covariance(7) + 1e-10 * np.eye(D))
    assert frechet_distance(a, b) == pytest.approx(literal(a, b), rel=1e-6)


def test_singular_covariance_is_finite_and_reported():
    """Two subspaces that share some directions: the distance is known from the diagonal form."""
    s = np.r_[RNG.random(7), np.zeros(5)]
    t = np.roll(s, 3)
    q = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    a, b = (Statistics(np.zeros(D), (q * v**2) @ q.T, count=100) for v in (s, t))
    assert frechet_distance(a, b) == pytest.approx(((s - t) ** 2).sum(), rel=1e-6)
    assert (rank(a), rank(b)) == (7, 7)
    assert rank(Statistics(np.zeros(D), covariance())) == D


def test_dimensions_that_differ():
    with pytest.raises(UserError, match="not of 12 and 3 dimensions"):
        frechet_distance(Statistics(np.zeros(D), np.eye(D)), Statistics(np.zeros(3), np.eye(3)))


@pytest.mark.parametrize("count", [2, D])
def test_too_few_images(count):
    few, enough = (Statistics(np.zeros(D), np.eye(D), n) for n in (count, D + 1))
    for pair in ((few, enough), (enough, few)):
        with pytest.raises(UserError, match=f"at least 13 images; there are {count}"):
            frechet_distance(*pair)
    assert frechet_distance(enough, enough) == 0


@pytest.mark.parametrize("mean", [np.nan, np.inf, 1e200])
def test_a_distance_that_is_not_finite(mean):
    a, b = (Statistics(np.full(D, m), np.eye(D)) for m in (mean, 0))
    with np.errstate(all="ignore"), pytest.raises(UserError, match="not a finite number"):
        frechet_distance(a, b)


def test_many_at_once_are_each_as_alone():
    many = [Statistics(RNG.normal(size=D), covariance()) for _ in range(3)]
    reference = Statistics(RNG.normal(size=D), covariance())
    alone = [frechet_distance(one, reference) for one in many]
    assert frechet_distances(many, reference) == pytest.approx(alone, rel=1e-9)
