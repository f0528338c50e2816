"""BDIA, appendix B: CBDIA, and what undoing a mix does, transcribed literally.

The rules are those of paper.py.
"""

import pytest
import torch

from bdia_exp.samplers.core import Estimate, Level
from bdia_exp.samplers.coupling import CBDIA, EDICT
from bdia_exp.samplers.loops import cbdia, coupled, multistep
from tests.samplers.paper import NETWORK, VP, Z_N, N, largest, same, solve

pytestmark = pytest.mark.quick

PAIRS = [(0.0, 1.0), (1.0, 0.0), (0.2, 0.8), (0.9, 0.35)]
every_pair = pytest.mark.parametrize(("gamma1", "gamma2"), PAIRS)


def eq43_46(paper, i, z, y, gamma1, gamma2):
    w = z + paper.forward(i, y)
    v = y - paper.backward(i, w)
    return gamma1 * w + (1 - gamma1) * v, gamma2 * w + (1 - gamma2) * v


def eq47_50(paper, i, z, y, gamma1, gamma2):
    v = (gamma1 * y - gamma2 * z) / (gamma1 - gamma2)
    w = ((1 - gamma1) * y - (1 - gamma2) * z) / (gamma2 - gamma1)
    y_before = v + paper.backward(i, w)
    return w - paper.forward(i, y_before), y_before


def eq60_63(paper, i, z, y, gamma1, gamma2, *, bracket):
    """`bracket` is the index of the α in front of the bracket of (61), printed i − 1."""
    alpha, sigma, eps = paper.alpha, paper.sigma, paper.eps(y, i)
    w = z + alpha[i - 1] * ((y - sigma[i] * eps) / alpha[i]) + sigma[i - 1] * eps - y
    eps = paper.eps(w, i - 1)
    x = (w - sigma[i - 1] * eps) / alpha[i - 1]
    v = y - (alpha[bracket] * x + sigma[i] * eps - w)
    return gamma1 * w + (1 - gamma1) * v, gamma2 * w + (1 - gamma2) * v


def pairs_of(paper, gamma1, gamma2):
    """{i: (z_i, y_i)} of the code, from z_N = y_N."""
    pairs = coupled(NETWORK, (Z_N, Z_N), paper.grid, CBDIA(gamma1, gamma2))
    return dict(zip(range(N, -1, -1), [(Z_N, Z_N), *pairs], strict=True))


@every_pair
def test_bdia_43_46_cbdia(paper, gamma1, gamma2):
    for i in (N, 4, 1):
        pair = Z_N, Z_N.flip(0)
        step = paper.level(i), paper.level(i - 1), N - i
        same(
            CBDIA(gamma1, gamma2).step(NETWORK, pair, *step),
            eq43_46(paper, i, *pair, gamma1, gamma2),
        )
    pair = Z_N, Z_N
    sampled = cbdia(NETWORK, Z_N, paper.grid, gamma1=gamma1, gamma2=gamma2)
    for i, y in zip(range(N, 0, -1), sampled, strict=True):
        pair = eq43_46(paper, i, *pair, gamma1, gamma2)
        same(y, pair[1], atol=1e-12)


@every_pair
def test_bdia_47_50_cbdia_undone(paper, gamma1, gamma2):
    coupling = CBDIA(gamma1, gamma2)
    for i in (N, 4, 1):
        pair = Z_N, Z_N.flip(0)
        step = paper.level(i), paper.level(i - 1), N - i
        back = eq47_50(paper, i, *pair, gamma1, gamma2)
        same(coupling.undo(NETWORK, pair, *step), back, atol=1e-12)
        there = eq43_46(paper, i, *pair, gamma1, gamma2)
        same(coupling.undo(NETWORK, there, *step), pair, atol=1e-12)


def test_bdia_51_55_cbdia_at_0_1_is_bdia_at_gamma_one(paper):
    """(54) is stated for i < N − 1 and (55) for i < N: both hold one further, and are needed."""
    pairs = pairs_of(paper, 0.0, 1.0)
    z, y = ({i: pair[place] for i, pair in pairs.items()} for place in (0, 1))
    for i in range(N, 0, -1):
        same(y[i - 1], z[i] + paper.forward(i, y[i]))  # (51)
        same(z[i - 1], y[i] - paper.backward(i, y[i - 1]))  # (52), (55)
    same(y[N - 1], y[N] + paper.forward(N, y[N]))  # (53)
    for i in range(N - 1, 0, -1):
        eq54 = y[i + 1] - paper.backward(i + 1, y[i]) + paper.forward(i, y[i])
        same(y[i - 1], eq54)
    for state, ours in solve(multistep, paper.grid, gamma=1.0).items():
        torch.testing.assert_close(y[state], ours, rtol=2e-15, atol=2e-15)


def test_bdia_56_57_lemma_1(paper):
    pairs = pairs_of(paper, 0.0, 1.0)
    y = {i: pair[1] for i, pair in pairs.items()}

    def both(j):
        return -paper.backward(j + 1, y[j]) + paper.forward(j, y[j])

    for i in range(N):
        eq56 = y[N] + paper.forward(N, y[N]) * ((N - i) % 2)
        eq56 = eq56 + sum(both(j) * ((j - i) % 2) for j in range(i + 1, N))
        eq57 = y[N] + paper.forward(N, y[N]) * ((N - i - 1) % 2)
        eq57 = eq57 + sum(both(j) * ((j - i - 1) % 2) for j in range(i + 2, N))
        eq57 = eq57 - paper.backward(i + 1, y[i])
        same(pairs[i], (eq57, eq56))


def test_bdia_58_59_lemma_2(paper):
    pairs = pairs_of(paper, 1.0, 0.0)
    z, y = ({i: pair[place] for i, pair in pairs.items()} for place in (0, 1))
    for i in range(N, 0, -1):
        same(z[i - 1], z[i] + paper.forward(i, y[i]))
        same(y[i - 1], y[i] - paper.backward(i, z[i - 1]))
    for i in range(N):
        same(y[i], y[N] - sum(paper.backward(j + 1, z[j]) for j in range(i, N)))
        same(z[i], z[N] + sum(paper.forward(j, y[j]) for j in range(i + 1, N + 1)))


@pytest.mark.parametrize("phi", [0.0, 0.2, 0.5 + 1e-3, 1.0])
def test_cbdia_at_phi_averages_both_steps_in_every_past_slot(paper, phi):
    """What B.3 announces for (φ, 1 − φ), in the time-slots [t_{j+1}, t_j] with j ≥ i."""
    pairs = pairs_of(paper, phi, 1 - phi)
    y = {i: pair[1] for i, pair in pairs.items()}
    w = {i - 1: pairs[i][0] + paper.forward(i, y[i]) for i in range(1, N + 1)}
    for i in range(N):
        z_i, y_i = Z_N, Z_N
        for j in range(i, N):
            share = (1 + (2 * phi - 1) ** (j + 1 - i)) / 2
            forward, backward = paper.forward(j + 1, y[j + 1]), -paper.backward(j + 1, w[j])
            z_i = z_i + share * forward + (1 - share) * backward
            y_i = y_i + (1 - share) * forward + share * backward
        same(pairs[i], (z_i, y_i))


@every_pair
def test_bdia_60_63_cbdia_ddim(paper, gamma1, gamma2):
    """With α_i in front of the bracket of (61); where α ≡ 1 its print is the same."""
    pair = Z_N, Z_N.flip(0)
    for i in (N, 4, 1):
        step = CBDIA(gamma1, gamma2).step(NETWORK, pair, paper.level(i), paper.level(i - 1), N - i)
        same(step, eq60_63(paper, i, *pair, gamma1, gamma2, bracket=i))
        printed = eq60_63(paper, i, *pair, gamma1, gamma2, bracket=i - 1)
        differs = largest(step, printed)
        assert differs > 1e-3 if paper.grid is VP else differs < 1e-12
        back = eq47_50(paper, i, *printed, gamma1, gamma2)
        assert largest(back, pair) > 1e-3 if paper.grid is VP else largest(back, pair) < 1e-12


# --- What undoing a mix does to an error ---

EDM_LEVELS = tuple(Level(1.0, float(sigma), float(sigma)) for sigma in range(20, -1, -1))


@pytest.mark.parametrize(
    ("coupling", "eigenvalue"),
    [
        (EDICT(0.93), 0.93**2),
        (EDICT(0.5), 0.5**2),
        (EDICT(1.0), 1.0),
        (EDICT(0.93, alternate=True), 0.93**2),
        (CBDIA(0.0, 1.0), 1.0),
        (CBDIA(1.0, 0.0), 1.0),
        (CBDIA(0.04, 0.96), 0.92),
        (CBDIA(0.7, 0.4), 0.3),
    ],
    ids=str,
)
def test_undoing_a_mix_enlarges_a_difference_by_the_eigenvalue(coupling, eigenvalue):
    """The mixes have eigenvalues 1, for both states moved alike, and p² or γ₁ − γ₂."""

    def no_noise(z, level):
        return Estimate(level, z, torch.zeros_like(z))

    def undone(dz, dy):
        """The pair's change after undoing 20 steps, of a change at the end; all else is 0."""
        pair = torch.tensor([dz], dtype=torch.float64), torch.tensor([dy], dtype=torch.float64)
        *_, last = coupled(no_noise, pair, EDM_LEVELS, coupling, undo=True)
        return [float(state) for state in last]

    assert undone(1.0, 1.0) == pytest.approx([1, 1], rel=1e-9)
    z, y = undone(1.0, 0.0)
    assert abs(z - y) == pytest.approx(eigenvalue**-20, rel=1e-9)
    assert coupling.amplification == pytest.approx(1 / eigenvalue)
