"""BDIA, section 4, and EDM's algorithms, transcribed literally.

The rules are those of paper.py.
"""

import math
from itertools import pairwise

import pytest
import torch

from bdia_exp.samplers.core import Level
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.loops import heun, multistep
from bdia_exp.samplers.rules import leapfrog
from tests.samplers.paper import GAMMAS, NETWORK, RNG, VE, VP, Z_N, N, Paper, same, solve

pytestmark = pytest.mark.quick


def edm_times():
    """[EDM 5] {i: t_i} in BDIA's order of indices."""
    rho, low, high = 7, 0.002, 80.0
    t = [
        (high ** (1 / rho) + i / (N - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(N)
    ]
    return {N - place: time for place, time in enumerate([*t, 0.0])}


def slope(z, t):
    """d(z, t) = (z − D(z; t))/t."""
    level = Level(1.0, t, t)
    return (z - NETWORK(z, level).x) / t


def algorithm_1(t, gamma, hat):
    """[BDIA Alg. 1] line by line, with the "else" that line 14 lacks; hat: ẑ_{i+1} in line 6."""
    z, z_hat, d = {N: Z_N * t[N]}, {}, {}
    for i in range(N, 0, -1):
        d[i] = slope(z[i], t[i])
        if i < N:
            past = z_hat[i + 1] if hat else z[i + 1]
            z_hat[i] = (
                past
                + (1 - gamma) * (z[i] - past)
                + gamma * (t[i] - t[i + 1]) * (0.5 * d[i + 1] + 0.5 * d[i])
            )
        else:
            z_hat[i] = z[i]
        z_tilde = z_hat[i] + (t[i - 1] - t[i]) * d[i]
        if t[i - 1] != 0:
            d_prime = slope(z_tilde, t[i - 1])
            z[i - 1] = z_hat[i] + (t[i - 1] - t[i]) * (0.5 * d[i] + 0.5 * d_prime)
        else:
            z[i - 1] = z_tilde
    return z


def test_edm_5_grid():
    t = edm_times()
    assert [level.sigma for level in karras(N)] == pytest.approx([t[i] for i in range(N, -1, -1)])


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
@pytest.mark.parametrize("refine", ["literal", "hat"])
def test_bdia_37_algorithm_1(gamma, refine):
    t = edm_times()
    expected = algorithm_1(t, gamma, hat=refine == "hat")
    states = heun(NETWORK, Z_N * t[N], karras(N), gamma=gamma, refine=refine)
    for i, state in zip(range(N - 1, -1, -1), states, strict=True):
        same(state, expected[i], atol=1e-12)


def test_the_two_readings_of_algorithm_1_differ():
    t = edm_times()
    literal, hat = algorithm_1(t, 1.0, hat=False), algorithm_1(t, 1.0, hat=True)
    same(literal[N - 2], hat[N - 2])
    assert (literal[0] - hat[0]).abs().max() > 1e-3


def test_bdia_35_36_edm_sampler():
    t = edm_times()
    z, expected = Z_N * t[N], {}
    for i in range(N, 0, -1):
        d = slope(z, t[i])
        z_tilde = z + (t[i - 1] - t[i]) * d
        d_prime = slope(z_tilde, t[i - 1]) if i > 1 else d
        z = z + (t[i - 1] - t[i]) * (0.5 * d + 0.5 * d_prime)
        expected[i - 1] = z
    for i, state in zip(range(N - 1, -1, -1), heun(NETWORK, Z_N * t[N], karras(N)), strict=True):
        same(state, expected[i], atol=1e-12)


def test_bdia_34_edm_s_form_of_the_forward_process():
    """z/α at (α, σ) is a state at (1, σ̃), with the same noise; a DDIM step is (35) there."""
    for level, below in pairwise(VP):
        sigma = level.sigma / level.alpha
        assert level.sigma == pytest.approx(level.alpha * sigma)
        assert level.rho == pytest.approx(sigma)
        scaled = Level(1.0, sigma, sigma)
        same(NETWORK(Z_N, scaled).eps, NETWORK(level.alpha * Z_N, level).eps)
        eq35 = Z_N + (below.sigma / below.alpha - sigma) * slope(Z_N, sigma)
        ddim = next(multistep(NETWORK, level.alpha * Z_N, (level, below)))
        same(ddim / below.alpha, eq35)


def test_leapfrog_is_bdia_at_gamma_one_where_alpha_is_one():
    ours, bdia_1 = solve(multistep, VE, rule=leapfrog), Paper(VE).trajectory(1.0)
    for i in range(N + 1):
        same(ours[i], bdia_1[i])


def test_leapfrog_on_vp_levels_is_bdia_in_the_coordinates_of_34():
    """z_i/α_i are the states of BDIA at (1, σ̃_i), and not those of BDIA on the VP levels."""
    paper = Paper(VP)
    z = {N: Z_N, N - 1: Z_N + paper.forward(N, Z_N)}
    for i in range(N - 1, 0, -1):
        both = paper.rho(i - 1) - paper.rho(i + 1)
        scaled = z[i + 1] / paper.alpha[i + 1] + both * paper.eps(z[i], i)
        z[i - 1] = paper.alpha[i - 1] * scaled
    ours = solve(multistep, VP, rule=leapfrog)
    scaled_levels = [Level(1.0, level.sigma / level.alpha, level.time) for level in VP]
    in_34 = [Z_N / VP[0].alpha, *multistep(NETWORK, Z_N / VP[0].alpha, scaled_levels, gamma=1.0)]
    for i in range(N + 1):
        same(ours[i], z[i])
        same(ours[i] / paper.alpha[i], in_34[N - i], atol=1e-12)
    assert (ours[0] - paper.trajectory(1.0)[0]).abs().max() > 1e-2


CHURN = [
    pytest.param({"S_churn": 2.0}, id="2/N"),
    pytest.param({"S_churn": 40.0, "S_noise": 1.007}, id="√2−1"),
    pytest.param({"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}, id="between"),
]


@pytest.mark.parametrize("churn", CHURN)
def test_edm_algorithm_2(churn):
    """Line by line, in EDM's order of indices: t_0 is the noisy end."""
    times = edm_times()
    t = [times[N - i] for i in range(N + 1)]
    draws = torch.randn(N, *Z_N.shape, generator=RNG, dtype=torch.float64)
    fresh = iter(draws)
    states = heun(NETWORK, Z_N * t[0], karras(N), noise=lambda z: next(fresh), **churn)
    s_churn, s_noise = churn["S_churn"], churn.get("S_noise", 1.0)
    s_min, s_max = churn.get("S_min", 0.0), churn.get("S_max", math.inf)
    x, churned = Z_N * t[0], 0
    for i, state in zip(range(N), states, strict=True):
        gamma = min(s_churn / N, math.sqrt(2) - 1) if s_min <= t[i] <= s_max else 0.0
        churned += gamma > 0
        eps = s_noise * draws[i]
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * eps
        d = (x_hat - NETWORK(x_hat, Level(1.0, t_hat, t_hat)).x) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = (x - NETWORK(x, Level(1.0, t[i + 1], t[i + 1])).x) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * d_prime)
        same(state, x, atol=1e-11)
    assert churned == (5 if "S_min" in churn else N)
