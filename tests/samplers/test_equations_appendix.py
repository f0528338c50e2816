"""BDIA's appendices and what they build on, transcribed literally and compared with the code.

The rules are those of test_equations.py: nothing here uses the package's formulas, only its levels
and the toy network. Appendix A is a proof, B is CBDIA, C is BDIA on DPM-Solver++; its Remark 4 asks
for PLMS and DEIS, which come from the PNDM and the DEIS paper.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from bdia_exp.core import Estimate, Level
from bdia_exp.coupling import CBDIA, EDICT
from bdia_exp.rules import ddim, deis, dpmpp, plms
from bdia_exp.schedules import DiscreteVP, linear_vp, linear_vp_time
from bdia_exp.solvers import bdia, cbdia, coupled, halfway, multistep, pndm
from tests.samplers.test_equations import (
    GAMMAS,
    NETWORK,
    VE,
    VP,
    Z_N,
    N,
    Paper,
    largest,
    same,
    solve,
)


@pytest.fixture(params=[VP, VE], ids=["vp", "ve"])
def paper(request):
    return Paper(request.param)


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


# --- Appendix B: CBDIA ---

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


# --- Appendix C: DPM-Solver++, PLMS and DEIS, and BDIA on top of them ---


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
