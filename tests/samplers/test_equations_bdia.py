"""BDIA, (21) to (33), with the proof of appendix A, transcribed literally.

The rules are those of paper.py.
"""

import math

import pytest
import torch

from bdia_exp.samplers.core import Estimate
from bdia_exp.samplers.inversion import BDIAInversion
from bdia_exp.samplers.loops import bdia, multistep
from tests.samplers.paper import GAMMAS, NETWORK, SMOOTH, Z_N, N, angle, same, solve

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("j", [N, 3, 1])
def test_bdia_21_23_24_forward_and_backward_steps(paper, j):
    now = NETWORK(Z_N, paper.level(j))
    same(now.at(paper.level(j - 1)) - Z_N, paper.forward(j, Z_N))
    now = NETWORK(Z_N, paper.level(j - 1))
    eq24 = Z_N / paper.a(j) - paper.b(j) / paper.a(j) * now.eps - Z_N
    same(paper.backward(j, Z_N), eq24)
    same(now.at(paper.level(j)) - Z_N, eq24)


@pytest.mark.parametrize(("phi", "order"), [(0.0, 2), (0.3, 2), (0.5, 3), (1.0, 2)])
def test_bdia_22_the_plain_mean_of_both_steps_gains_an_order(phi, order):
    """(22) approximates the integral for every φ; with O(h³) instead of O(h²) at φ = ½."""
    z = Z_N[:, :3]
    predict = SMOOTH.denoiser()

    def error(h):
        s, t = angle(0.9), angle(0.9 - h)
        a = t.alpha / s.alpha
        b = t.sigma - s.sigma * t.alpha / s.alpha
        forward = a * z + b * predict(z, s).eps - z
        below = z + forward
        backward = below / a - b / a * predict(below, t).eps - below
        exact = SMOOTH.flow(z, s, t) - z
        return (exact - ((1 - phi) * forward - phi * backward)).abs().max()

    assert math.log2(error(0.01) / error(0.005)) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bdia_25_26_27_definition_1(paper, gamma):
    z = solve(multistep, paper.grid, gamma=gamma)
    eq27 = paper.trajectory(gamma)
    for i in range(N, -1, -1):
        same(z[i], eq27[i])
    for i in range(N - 1, 0, -1):
        eps = paper.eps(z[i], i)
        eq26 = (
            gamma * (z[i + 1] - z[i])
            - gamma * (z[i] / paper.a(i + 1) - paper.b(i + 1) / paper.a(i + 1) * eps - z[i])
            + (paper.a(i) * z[i] + paper.b(i) * eps)
        )
        same(z[i - 1], eq26)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0])
def test_the_public_code_once_carried_the_refined_past(paper, gamma):
    """Its first form, with γ for its 0.5: x_last becomes x_last − (1−γ)(x_last − x) − γ Δ, ẑ_i."""
    z = solve(multistep, paper.grid, gamma=gamma, refine="hat")
    last = z[N]
    for i in range(N - 1, 0, -1):
        refined = last - (1 - gamma) * (last - z[i]) - gamma * paper.backward(i + 1, z[i])
        same(z[i - 1], refined + paper.forward(i, z[i]))
        last = refined


def test_bdia_28_gamma_one(paper):
    z = solve(multistep, paper.grid, gamma=1.0)
    for i in range(N - 1, 0, -1):
        same(z[i - 1], z[i + 1] - paper.backward(i + 1, z[i]) + paper.forward(i, z[i]))


def integral(paper, z, i, s, t):
    """Δ(t_s → t_t | z_i, z_{i+1}) [BDIA 29]: d(z/α) = ε̂ dρ, ε̂ the straight line through both."""
    now, past = paper.eps(z[i], i), paper.eps(z[i + 1], i + 1)
    tilt = (past - now) / (paper.rho(i + 1) - paper.rho(i))
    start, end = paper.rho(s) - paper.rho(i), paper.rho(t) - paper.rho(i)
    moved = z[s] / paper.alpha[s] + now * (end - start) + tilt * (end**2 - start**2) / 2
    return paper.alpha[t] * moved - z[s]


SECOND_ORDER = [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (1.0, 0.4), (0.2, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize(("gamma1", "gamma2"), SECOND_ORDER)
def test_bdia_29_second_order(paper, gamma1, gamma2):
    """The first step is (25); the second has no z_{i+2}, which is what γ₂ = 0 leaves out."""
    z = solve(bdia, paper.grid, gamma1=gamma1, gamma2=gamma2)
    same(z[N - 1], z[N] + paper.forward(N, z[N]))
    i = N - 1
    same(
        z[i - 1],
        z[i + 1]
        - (1 - gamma1) * (z[i + 1] - z[i])
        - gamma1 * integral(paper, z, i, i, i + 1)
        + integral(paper, z, i, i, i - 1),
    )
    for i in range(N - 2, 0, -1):
        eq29 = (
            z[i + 2]
            - (1 - gamma2) * (z[i + 2] - z[i + 1])
            - gamma2 * integral(paper, z, i, i + 1, i + 2)
            - (1 - gamma1) * (z[i + 1] - z[i])
            - gamma1 * integral(paper, z, i, i, i + 1)
            + integral(paper, z, i, i, i - 1)
        )
        same(z[i - 1], eq29, atol=1e-12)


@pytest.mark.parametrize(("gamma1", "gamma2"), [pair for pair in SECOND_ORDER if pair[1]])
def test_bdia_29_can_be_solved_for_the_oldest_state(paper, gamma1, gamma2):
    """Remark 1: both noises are those of known states, so (29) is linear in z_{i+2}."""
    forth = solve(bdia, paper.grid, gamma1=gamma1, gamma2=gamma2)
    z = {i: forth[i] for i in (0, 1, 2)}
    for i in range(1, N - 1):
        known = (
            (1 - gamma2) * z[i + 1]
            - gamma2 * integral(paper, z, i, i + 1, i + 2)
            - (1 - gamma1) * (z[i + 1] - z[i])
            - gamma1 * integral(paper, z, i, i, i + 1)
            + integral(paper, z, i, i, i - 1)
        )
        z[i + 2] = (z[i - 1] - known) / gamma2
    for i in range(N + 1):
        same(z[i], forth[i], atol=1e-10)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bdia_30_31_proposition_1(paper, gamma):
    """The sum's coefficients are φ of (22): they add to 1 in every time-slot."""
    z = solve(multistep, paper.grid, gamma=gamma)
    for i in range(N - 1):
        closed = z[N] + paper.forward(i + 1, z[i + 1])
        for j in range(i + 2, N + 1):
            forward = (1 - (-gamma) ** (j - i)) / (1 + gamma)
            backward = (gamma + (-gamma) ** (j - i)) / (1 + gamma)
            assert forward + backward == pytest.approx(1, abs=1e-15)
            assert -1e-15 < backward <= 1
            closed = closed + forward * paper.forward(j, z[j])
            closed = closed - backward * paper.backward(j, z[j - 1])
        same(z[i], closed)


def test_bdia_32_proposition_1_at_gamma_one(paper):
    z = solve(multistep, paper.grid, gamma=1.0)
    for i in range(N):
        closed = z[N] + paper.forward(N, z[N]) * ((N - i) % 2)
        for j in range(i + 1, N):
            both = -paper.backward(j + 1, z[j]) + paper.forward(j, z[j])
            closed = closed + both * ((j - i) % 2)
        same(z[i], closed)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bdia_33_inversion(paper, gamma):
    """One step of the loop on the reversed grid, with 1/γ, is (33)."""
    z = solve(multistep, paper.grid, gamma=gamma)
    for i in range(1, N):
        eps = paper.eps(z[i], i)
        eq33 = (
            z[i - 1] / gamma
            - (paper.a(i) * z[i] + paper.b(i) * eps) / gamma
            + (z[i] / paper.a(i + 1) - paper.b(i + 1) / paper.a(i + 1) * eps)
        )
        past = Estimate(paper.level(i - 1), z[i - 1], torch.zeros_like(eps))
        step = paper.level(i), paper.level(i + 1)
        back = next(multistep(NETWORK, z[i], step, gamma=1 / gamma, trail=[past]))
        same(back, eq33, atol=1e-12)
        same(back, z[i + 1], atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bdia_33_from_a_clean_state(paper, gamma):
    """All the way from z_0: (23) first, for there is no z_{−1} yet, then (33)."""
    z = {0: Z_N, 1: Z_N + paper.backward(1, Z_N)}
    ways = BDIAInversion(gamma).encode(NETWORK, Z_N, paper.grid)
    same(next(ways)["z"], z[1])
    for i, kept in zip(range(1, N), ways, strict=True):
        eps = paper.eps(z[i], i)
        z[i + 1] = (
            z[i - 1] / gamma
            - (paper.a(i) * z[i] + paper.b(i) * eps) / gamma
            + (z[i] / paper.a(i + 1) - paper.b(i + 1) / paper.a(i + 1) * eps)
        )
        scale = float(z[i + 1].abs().max())
        same(kept["z"] / scale, z[i + 1] / scale, atol=1e-12)
        same(kept["past"] / scale, z[i] / scale, atol=1e-12)


def test_bdia_proposition_2_time_symmetry(paper):
    """With t_{i−1} and t_{i+1} exchanged, (28) is (33) at γ = 1."""
    i, before, now = 3, Z_N, Z_N.flip(0)
    forward, backward = paper.forward(i, now), paper.backward(i + 1, now)
    switched_28 = before - forward + backward
    eps = paper.eps(now, i)
    eq33 = (
        before
        - (paper.a(i) * now + paper.b(i) * eps)
        + (now / paper.a(i + 1) - paper.b(i + 1) / paper.a(i + 1) * eps)
    )
    same(switched_28, eq33)
    past = Estimate(paper.level(i - 1), before, torch.zeros_like(eps))
    step = paper.level(i), paper.level(i + 1)
    same(next(multistep(NETWORK, now, step, gamma=1.0, trail=[past])), eq33)


# --- Appendix A: the induction that proves Proposition 1 ---


def both_steps(paper, z):
    """{j: Δ(t_j → t_{j−1} | z_j)} and {j: Δ(t_{j−1} → t_j | z_{j−1})}."""
    forward = {j: paper.forward(j, z[j]) for j in range(1, N + 1)}
    return forward, {j: paper.backward(j, z[j - 1]) for j in range(1, N + 1)}


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bdia_38_and_the_two_first_states_of_the_induction(paper, gamma):
    z = solve(multistep, paper.grid, gamma=gamma)
    forward, backward = both_steps(paper, z)
    same(
        z[N - 2], z[N] + (1 - gamma) * forward[N] - gamma * backward[N] + forward[N - 1], atol=1e-12
    )
    eq38 = gamma * forward[N] + gamma * backward[N] - forward[N - 1]
    same(z[N - 1] - z[N - 2], eq38, atol=1e-12)
    rest = (1 - gamma) * forward[N - 1] - gamma * backward[N - 1] + forward[N - 2]
    third = z[N] + (1 - (1 - gamma) * gamma) * forward[N] - (1 - gamma) * gamma * backward[N] + rest
    fourth = (
        z[N]
        + (1 - (-gamma) ** 3) / (1 + gamma) * forward[N]
        - gamma * (1 - gamma**2) / (1 + gamma) * backward[N]
        + rest
    )
    same(z[N - 3], third, atol=1e-12)
    same(z[N - 3], fourth, atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bdia_39_42_the_induction(paper, gamma):
    z = solve(multistep, paper.grid, gamma=gamma)
    forward, backward = both_steps(paper, z)

    def total(first, back):
        """Σ_{j=first}^N [(1 − (−γ)^{j−back})/(1+γ) Δ→ − (γ + (−γ)^{j−back})/(1+γ) Δ←]."""
        return sum(
            (1 - (-gamma) ** (j - back)) / (1 + gamma) * forward[j]
            - (gamma + (-gamma) ** (j - back)) / (1 + gamma) * backward[j]
            for j in range(first, N + 1)
        )

    for k in range(1, N - 2):
        same(z[k], z[N] + total(k + 2, k) + forward[k + 1], atol=1e-12)  # (39)
        same(z[k + 1], z[N] + total(k + 3, k + 1) + forward[k + 2], atol=1e-12)  # (40)
        newest = -gamma * backward[k + 1] + forward[k]
        eq41 = gamma * z[k + 1] + (1 - gamma) * z[k] + newest
        second = z[N] + sum(
            (gamma + (-gamma) ** (j - k) + (1 - gamma) * (1 - (-gamma) ** (j - k)))
            / (1 + gamma)
            * forward[j]
            - (gamma**2 - (-gamma) ** (j - k) + (1 - gamma) * (gamma + (-gamma) ** (j - k)))
            / (1 + gamma)
            * backward[j]
            for j in range(k + 3, N + 1)
        )
        second = (
            second
            + (gamma + gamma**2 + (1 - gamma) * (1 - (-gamma) ** 2)) / (1 + gamma) * forward[k + 2]
            - (1 - gamma) * (gamma + (-gamma) ** 2) / (1 + gamma) * backward[k + 2]
            + (1 - gamma) * forward[k + 1]
            + newest
        )
        third = (
            z[N]
            + total(k + 3, k - 1)
            + (1 - (-gamma) ** 3) / (1 + gamma) * forward[k + 2]
            - (gamma + (-gamma) ** 3) / (1 + gamma) * backward[k + 2]
            + (1 - gamma) * forward[k + 1]
            + newest
        )
        eq42 = z[N] + total(k + 1, k - 1) + forward[k]
        for printed in (eq41, second, third, eq42):
            same(z[k - 1], printed, atol=1e-12)
