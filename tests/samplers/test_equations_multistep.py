"""BDIA, appendix C and Remark 4: DPM-Solver++, PLMS and DEIS, and BDIA on top of them.

The rules are those of paper.py. PLMS and DEIS come from the PNDM and the DEIS paper.
"""

import math
from functools import partial

import numpy as np
import pytest
from scipy.integrate import quad

from bdia_exp.samplers.core import Level
from bdia_exp.samplers.loops import bdia, multistep, pndm
from bdia_exp.samplers.rules import ddim, deis, dpmpp, plms
from bdia_exp.samplers.schedules import DiscreteVP, linear_vp, linear_vp_time
from bdia_exp.samplers.starts import halfway
from tests.samplers.paper import GAMMAS, NETWORK, VP, Z_N, N, Paper, same, solve

pytestmark = pytest.mark.quick


def with_bdia(paper, base, gamma, *, first=1):
    """{i: z_i} of (65), `base(z, i)` being Γ; without BDIA in the first steps."""
    z = {N: Z_N}
    for i in range(N, 0, -1):
        z[i - 1] = base(z, i)
        if i <= N - first:
            average = (1 - gamma) * (z[i] - z[i + 1]) - gamma * paper.backward(i + 1, z[i])
            z[i - 1] = z[i + 1] + average + (z[i - 1] - z[i])
    return z


def agree(sampler, paper, expected, atol=1e-12, **options):
    z = solve(sampler, paper.grid, **options)
    for i in range(N, -1, -1):
        same(z[i], expected[i], atol=atol)


every_gamma = pytest.mark.parametrize("gamma", [0.0, *GAMMAS])


def dpm_solver_pp_2m(paper, z, i):
    """Lu et al.'s multistep second-order solver; to σ = 0, where λ is infinite, DDIM."""

    def x(j):
        return (z[j] - paper.sigma[j] * paper.eps(z[j], j)) / paper.alpha[j]

    def lam(j):
        return math.log(paper.alpha[j] / paper.sigma[j])

    if paper.sigma[i - 1] == 0:
        return z[i] + paper.forward(i, z[i])
    h = lam(i - 1) - lam(i)
    D = x(i)
    if i < N:
        r = (lam(i) - lam(i + 1)) / h
        D = (1 + 1 / (2 * r)) * x(i) - 1 / (2 * r) * x(i + 1)
    alpha, sigma = paper.alpha, paper.sigma
    return sigma[i - 1] / sigma[i] * z[i] - alpha[i - 1] * (math.exp(-h) - 1) * D


@every_gamma
@pytest.mark.parametrize("final", [None, ddim])
def test_bdia_64_65_dpm_solver_pp(paper, gamma, final):
    expected = with_bdia(paper, partial(dpm_solver_pp_2m, paper), gamma)
    agree(multistep, paper, expected, rule=dpmpp, final=final, gamma=gamma)


def phi(z, eps, level, to):
    """PNDM's transfer, (11) of its paper, in ᾱ = α²."""
    s, t = level.alpha**2, to.alpha**2
    down = math.sqrt(s) * (math.sqrt((1 - t) * s) + math.sqrt((1 - s) * t))
    return math.sqrt(t) / math.sqrt(s) * z - (t - s) / down * eps


def linear_multistep(e):
    """PNDM's e′ from the noises so far, newest first; of a lower order while they are fewer."""
    if len(e) == 1:
        return e[0]
    if len(e) == 2:
        return (3 * e[0] - e[1]) / 2
    if len(e) == 3:
        return (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
    return (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24


def pseudo_heun(paper, z, i):
    s, t = paper.level(i), paper.level(i - 1)
    e1 = paper.eps(z, i)
    e2 = paper.eps(phi(z, e1, s, t), i - 1)
    return phi(z, (e1 + e2) / 2, s, t)


def pseudo_runge_kutta(paper, z, i):
    s, t = paper.level(i), paper.level(i - 1)
    middle = halfway(s, t)
    e1 = NETWORK(z, s).eps
    e2 = NETWORK(phi(z, e1, s, middle), middle).eps
    e3 = NETWORK(phi(z, e2, s, middle), middle).eps
    e4 = NETWORK(phi(z, e3, s, t), t).eps
    return phi(z, (e1 + 2 * e2 + 2 * e3 + e4) / 6, s, t)


def pndm_step(paper, order, first_step, count, z, i):
    if i > N - count:
        return first_step(paper, z[i], i)
    e = [paper.eps(z[j], j) for j in range(i, N + 1)]
    return phi(z[i], linear_multistep(e[:order]), paper.level(i), paper.level(i - 1))


@every_gamma
@pytest.mark.parametrize(
    ("start", "order", "first_step", "count"),
    [
        pytest.param("rk4", 4, pseudo_runge_kutta, 3, id="f_pndm"),
        pytest.param("heun", 2, pseudo_heun, 1, id="s_pndm"),
        pytest.param("heun", 4, pseudo_heun, 1, id="plms"),
    ],
)
def test_pndm_and_remark_4(gamma, start, order, first_step, count):
    paper = Paper(VP)
    base = partial(pndm_step, paper, order, first_step, count)
    expected = with_bdia(paper, base, gamma, first=count)
    agree(pndm, paper, expected, start=start, order=order, gamma=gamma)


@every_gamma
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_plms_alone_and_remark_4(gamma, order):
    paper = Paper(VP)
    expected = with_bdia(paper, partial(pndm_step, paper, order, None, 0), gamma)
    agree(multistep, paper, expected, rule=partial(plms, order=order), gamma=gamma)


def test_the_level_halfway_of_a_runge_kutta_step():
    """Half the time; of EDM's levels half the σ, of VP levels the middle of log σ/α."""
    s, t = VP[1], VP[4]
    middle = halfway(s, t)
    assert middle.time == pytest.approx((s.time + t.time) / 2)
    assert middle.alpha**2 + middle.sigma**2 == pytest.approx(1)
    logs = [math.log(level.sigma / level.alpha) for level in (s, middle, t)]
    assert logs[1] == pytest.approx((logs[0] + logs[2]) / 2)
    assert halfway(Level(1.0, 6.0, 6.0), Level(1.0, 2.0, 2.0)) == Level(1.0, 4.0, 4.0)


BETA_MIN, BETA_MAX = 0.1, 20.0
TIMES = [1.0, 0.82, 0.6, 0.43, 0.2, 0.09, 0.01, 0.0]


def log_abar(t):
    """log ᾱ of the variance-preserving SDE whose β(t) is linear."""
    return -(BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2)


def vp_sde(t):
    """(√ᾱ, √(1 − ᾱ), t), the latter without cancellation."""
    return Level(math.exp(log_abar(t) / 2), math.sqrt(-math.expm1(log_abar(t))), t)


def lagrange(nodes, j, at):
    return math.prod((at - a) / (nodes[j] - a) for k, a in enumerate(nodes) if k != j)


def exactly(integrand, start, end):
    value, error = quad(integrand, start, end, epsabs=1e-12, epsrel=1e-12, limit=200)
    assert error < 1e-9
    return value


def tab_weights(i, nodes):
    """DEIS's C_ij, the polynomials in time: ∫ ½ Ψ(t_{i−1}, τ) G² L⁻¹ Π (τ − …)/(…) dτ."""
    t, s = TIMES[N - i + 1], TIMES[N - i]

    def integrand(j, tau):
        beta = BETA_MIN + (BETA_MAX - BETA_MIN) * tau
        psi = math.exp((log_abar(t) - log_abar(tau)) / 2)
        return 0.5 * psi * beta / vp_sde(tau).sigma * lagrange(nodes, j, tau)

    return [exactly(partial(integrand, j), s, t) for j in range(len(nodes))]


def deis_step(paper, weights, order, z, i):
    """z_{i−1} = Ψ z_i + Σ_j C_ij ε̂(z_{i+j}, i + j)."""
    past = range(i, min(i + order, N + 1))
    moved = paper.a(i) * z[i]
    for weight, j in zip(weights(i, past), past, strict=True):
        moved = moved + weight * paper.eps(z[j], j)
    return moved


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_tab_and_remark_4(gamma, order):
    """Order 4 is what the paper calls tAB3."""
    paper = Paper(tuple(map(vp_sde, TIMES)))

    def weights(i, past):
        return tab_weights(i, [TIMES[N - j] for j in past])

    expected = with_bdia(paper, partial(deis_step, paper, weights, order), gamma)
    agree(multistep, paper, expected, atol=1e-9, rule=partial(deis, order=order), gamma=gamma)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("clock", ["rho", "log_rho"])
def test_deis_rho_ab_and_remark_4(paper, gamma, order, clock):
    """C_ij = α_{i−1} ∫ Π (·) dρ, the polynomials in ρ = σ/α, or in log ρ as diffusers has them."""
    time = {"rho": float, "log_rho": math.log}[clock]

    def weights(i, past):
        nodes = [time(paper.rho(j)) for j in past]
        start, end = paper.rho(i), paper.rho(i - 1)
        return [
            paper.alpha[i - 1] * exactly(lambda rho, j=j: lagrange(nodes, j, time(rho)), start, end)
            for j in range(len(nodes))
        ]

    rule = partial(deis, order=order, clock=clock)
    expected = with_bdia(paper, partial(deis_step, paper, weights, order), gamma)
    agree(multistep, paper, expected, atol=1e-9, rule=rule, gamma=gamma)


def test_second_order_bdia_without_gammas_is_rho_ab_of_order_2(paper):
    ours = solve(bdia, paper.grid, gamma1=0.0, gamma2=0.0)
    agree(multistep, paper, ours, rule=partial(deis, order=2, clock="rho"))


def test_the_clock_of_tab_inverts_the_vp_sde():
    for t in (1.0, 0.5, 0.01, 1e-5, 1.3):
        rho = vp_sde(t).sigma / vp_sde(t).alpha
        assert linear_vp_time(rho) == pytest.approx(t, rel=1e-8)
    assert linear_vp_time(0.0) == 0


def test_the_clock_of_tab_is_even_over_ddpm_s_thousand_times():
    """ᾱ_k of `linear_vp` is, but for its finite steps, that of the SDE at (k + 1)/1000."""
    schedule = linear_vp()
    for k in range(1000):
        t = linear_vp_time(schedule(k).sigma / schedule(k).alpha)
        assert t == pytest.approx((k + 1) / 1000, abs=0.0035)


def test_a_level_between_the_times_of_a_schedule():
    """Its time is linear in log σ/α between those of the table."""
    schedule = DiscreteVP([0.99, 0.64, 0.25, 0.01])
    table = [math.sqrt((1 - a) / a) for a in schedule.abar]
    for rho in (*table, 0.11, 0.5, 1.0, 3.0, 9.0):
        level = schedule.at(rho)
        assert level.time == pytest.approx(np.interp(math.log(rho), np.log(table), range(4)))
        assert level.sigma / level.alpha == pytest.approx(rho)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    assert schedule.at(0.01).time == 0
