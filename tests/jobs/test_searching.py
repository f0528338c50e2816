"""The search for coefficients by the FID of their images."""

import pytest

from bdia_exp.errors import UserError
from bdia_exp.jobs.fits.searching import search
from bdia_exp.samplers.fitted import Bounds

FITTED = [[], [0.5, 0.2], [1.0]]
REACHES = [[], [0.4, 0.01], [2.0]]
BEST = (0.3, 0.205, 2.0)


def bowl(rows):
    """A distance with its least value at BEST; each coefficient has its own scale."""
    found = [weight for row in rows for weight in row]
    return sum(
        ((w - best) / reach) ** 2
        for w, best, reach in zip(found, BEST, (0.4, 0.01, 2.0), strict=True)
    )


@pytest.mark.quick
def test_the_search_finds_the_least_distance():
    tried = search(FITTED, REACHES, bowl, Bounds(), 200)
    assert [rows for _, rows in tried[:2]] == [[[], [0, 0], [0]], FITTED]
    fid, rows = min(tried)
    assert fid < 1e-3
    assert fid == bowl(rows)
    assert [len(row) for row in rows] == [0, 2, 1]
    assert len(tried) <= 200
    assert tried == search(FITTED, REACHES, bowl, Bounds(), 200)


def test_it_starts_at_the_better_of_none_and_the_fit():
    near_none = search(FITTED, REACHES, lambda rows: rows[2][0] ** 2, Bounds(), 9)
    near_fit = search(FITTED, REACHES, bowl, Bounds(), 9)
    assert all(abs(rows[2][0]) < 3 for _, rows in near_none[2:])
    assert all(rows[1][1] > 0.15 for _, rows in near_fit[2:])


def test_every_try_keeps_the_bounds():
    tried = search(FITTED, REACHES, bowl, Bounds((0.05, 1.5), 64), 60)
    weights = [w for _, rows in tried for row in rows for w in row]
    assert min(weights) >= 0.05 - 1 / 64
    assert max(weights) == 1.5
    for w in weights:
        assert any(float(round(w * d)) / d == w for d in range(1, 65))


def test_one_coefficient_is_too_few():
    with pytest.raises(UserError, match="needs two coefficients or more"):
        search([[], [0.5]], [[], [1.0]], bowl, Bounds(), 9)
