"""Every equation of gDDIM's sections 3 and 4, on data whose score is known.

VP equations are on `VP`'s levels, those with matrices on `CLD`'s. Only levels, Ψ, Σ and R are taken
from the package; `test_linear.py` compares these with their own equations.
"""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from bdia_exp.samplers.baselines import em, rk45, score, sscs
from bdia_exp.samplers.core import CLEAN, Estimate
from bdia_exp.samplers.diagonal import VP
from bdia_exp.samplers.gddim import predict_correct, predictor, stochastic
from bdia_exp.samplers.grids import quadratic_time
from bdia_exp.samplers.loops import multistep
from bdia_exp.samplers.quadrature import between
from bdia_exp.samplers.rules import ddim, deis
from tests.laws import MIXTURE as VP_MIXTURE
from tests.laws import end
from tests.laws import states as vp_states
from tests.samplers import cld_values as known
from tests.samplers.pairs import (
    DIFFUSION,
    DIRAC,
    NETWORK,
    POINT,
    columns,
    dirac,
    score_of_mixture,
    start,
    states,
)

pytestmark = pytest.mark.quick

VP_DIFFUSION = VP()
GRID = quadratic_time(5, DIFFUSION, final="first")
NOISE = torch.diag(torch.tensor([0.0, 8.0], dtype=torch.float64))
"""G Gᵀ = diag(0, 2Γβ)."""


def of(matrix, u):
    """A matrix [2, 2] on states [B, 2, 1]."""
    return torch.einsum("ab,nbc->nac", matrix, u)


def abar(t):
    return VP_DIFFUSION.level(t).alpha ** 2


def close(found, wanted, atol=1e-12):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def flow(network, u, t_end, t_start=1.0, tolerance=1e-11):
    """The probability flow's solution."""
    grid = DIFFUSION.level(t_start), DIFFUSION.level(t_end)
    return end(partial(rk45, rtol=tolerance, atol=tolerance), network, u, grid)


# --- The pairs of tests/samplers/pairs.py have their own score ---


@pytest.mark.parametrize("t", [1.0, 0.3, 0.05, 1e-3])
def test_gddim_4_24_an_edm_denoiser_gives_the_score_of_pairs(t):
    """Against the score of the pairs' own Gaussians, to 1e-9."""
    level = DIFFUSION.level(t)
    u = of(DIFFUSION.R(t), start()) + 0.2
    found, wanted = score(NETWORK(u, level)), score_of_mixture(u, t)
    assert ((found - wanted).abs() <= 1e-9 * wanted.abs().max()).all()
    eps = -of(DIFFUSION.R(t).mT, wanted)
    close(NETWORK(u, level).eps, eps, 1e-9)


def test_the_score_has_its_known_values():
    first = NETWORK(states(known.START), DIFFUSION.level(1.0))
    close(first.eps, states(known.EPS_AT_START))
    close(score(first), states(known.SCORE_AT_START))
    level = DIFFUSION.level(0.3)
    later = NETWORK(states(known.START), level).eps
    close(later, states(known.EPS_R))
    close(DIFFUSION.in_root(0.3, "L") * later, states(known.EPS_L))


def test_gddim_5_22_23_the_loss_is_that_of_edm_with_weight_one_over_sigma_squared():
    """‖ε − ε_θ‖² of a pixel's pair is (D − x_0)²/σ_eff², for any denoiser D and any draw ε."""
    x, eps = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None], start()
    clean = torch.stack([x, 0 * x], 1)
    for t in (1.0, 0.3, 0.01):
        level = DIFFUSION.level(t)
        u = level.alpha * clean + level.sigma * eps
        found = NETWORK(u, level)
        loss = (eps - found.eps).square().sum((1, 2))
        wanted = (found.x - clean)[:, 0, 0] ** 2 / DIFFUSION.sigma_eff(t) ** 2
        torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
        in_l = DIFFUSION.in_root(t, "L") * (eps - found.eps)
        close(in_l.square().sum((1, 2)), loss)


def test_the_velocity_of_the_clean_estimate_is_zero():
    """The second half of the paper's ε-network is redundant: v̂_0 = 0 for the exact ε."""
    for t in (1.0, 0.3, 1e-3):
        estimate = NETWORK(start(), DIFFUSION.level(t))
        assert estimate.x[:, 1].abs().max() < 1e-11


# --- Section 3: VP ---


def vp_dirac(t, z=None):
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] if z is None else z
    return dirac(z, VP_DIFFUSION.level(t))


def test_gddim_proposition_1_and_2_with_11_ddim_is_exact_for_one_data_point():
    """√(1 − ᾱ_{t−Δ}) is outside of the bracket that (11) multiplies by the ratio."""
    s, t = 0.9, 0.2
    first = vp_dirac(s)
    ratio = math.sqrt(abar(t) / abar(s))
    literal = (
        ratio * first.z + (math.sqrt(1 - abar(t)) - math.sqrt(1 - abar(s)) * ratio) * first.eps
    )
    close(first.at(VP_DIFFUSION.level(t)), literal)
    later = vp_dirac(t, literal)
    close(later.eps, first.eps)  # constant along the exact solution (Prop. 1)
    close(later.z, math.sqrt(abar(t)) * POINT + math.sqrt(1 - abar(t)) * first.eps)
    printed = (
        ratio * first.z + (math.sqrt(1 - abar(t)) - math.sqrt(1 - abar(s))) * ratio * first.eps
    )
    assert (printed - literal).abs().max() > 0.1
    close(first.x, POINT.expand_as(first.x), 1e-11)  # one step to the data point


def test_gddim_proposition_3_with_12_one_score_gives_all_scores():
    s, t = 0.9, 0.2
    first = vp_dirac(s)
    u = torch.linspace(3, -1, 5, dtype=torch.float64)[:, None]
    ratio = math.sqrt(abar(t) / abar(s))
    found = (1 - abar(s)) / (1 - abar(t)) * ratio * score(first) - (u - ratio * first.z) / (
        1 - abar(t)
    )
    close(found, score(vp_dirac(t, u)))


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_gddim_theorem_1_with_9_13_54_57_61_the_stochastic_form_is_ddim(lam):
    """The main text prints σ_t = …; as (54) has it, this is σ_t². λ = 1 is DDIM's η = 1."""
    s, t = 0.9, 0.4
    z = vp_states(VP_MIXTURE, VP_DIFFUSION.level(s))
    eps = VP_MIXTURE.denoiser()(z, VP_DIFFUSION.level(s)).eps
    old, new = abar(s), abar(t)
    variance = (1 - new) * (1 - ((1 - new) / (1 - old)) ** lam**2 * (old / new) ** lam**2)
    ratio = math.sqrt(new / old)
    mean = ratio * z + (math.sqrt(1 - new - variance) - ratio * math.sqrt(1 - old)) * eps
    grid = VP_DIFFUSION.level(s), VP_DIFFUSION.level(t)
    still = partial(stochastic, lam=lam, noise=torch.zeros_like)
    moved = partial(stochastic, lam=lam, noise=torch.ones_like)
    found = end(still, VP_MIXTURE.denoiser(), z, grid)
    close(found, mean)
    drawn = end(moved, VP_MIXTURE.denoiser(), z, grid) - found
    close(drawn, torch.full_like(drawn, math.sqrt(variance)))
    if lam == 1:
        eta = (1 - new) / (1 - old) * (1 - old / new)
        assert variance == pytest.approx(eta)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_vp_levels_gddim_is_ddim_and_deis(order):
    grid = quadratic_time(8, VP_DIFFUSION, t_min=0.01, final="first")
    z, network = vp_states(VP_MIXTURE, grid[0]), VP_MIXTURE.denoiser()
    rule = ddim if order == 1 else partial(deis, order=order, clock="vp_time")
    found = list(multistep(network, z, grid, rule=partial(predictor, order=order)))
    wanted = list(multistep(network, z, grid, rule=rule))
    close(torch.stack(found), torch.stack(wanted), 1e-13)


# --- Section 4.1: deterministic, with matrices ---


def test_gddim_proposition_4_with_7_14_the_noise_is_constant_with_r_and_turns_with_l():
    u = start()
    first = DIRAC(u, DIFFUSION.level(1.0))
    for t in (0.5, 0.05, 1e-3):
        z = flow(DIRAC, u, t)
        later = DIRAC(z, DIFFUSION.level(t))
        close(later.eps, first.eps, 1e-8)
        image = torch.stack([POINT.expand(len(u), 1), torch.zeros(len(u), 1)], 1).double()
        close(z, of(DIFFUSION.Psi(t), image) + of(DIFFUSION.R(t), first.eps), 1e-9)
        in_l = [DIFFUSION.in_root(time, "L") * e.eps for time, e in ((1.0, first), (t, later))]
        assert (in_l[0] - in_l[1]).abs().max() > 0.5


def test_gddim_16_one_step_is_exact_with_r_and_not_with_l():
    """The integral of (16); with R it is R_t − Ψ R_s (Lemma 2). (30) prints R⁻¹ for R⁻ᵀ."""
    s, t = 1.0, 1e-3
    u = start()
    first = DIRAC(u, DIFFUSION.level(s))
    times, weights = between(s, t)
    for K, root in (("R", DIFFUSION.R), ("L", DIFFUSION.L)):
        parts = [
            w * DIFFUSION.Psi(t, tau) @ NOISE @ torch.linalg.inv(root(tau)).mT / 2
            for tau, w in zip(times.tolist(), weights.tolist(), strict=True)
        ]
        eps = DIFFUSION.in_root(s, K) * first.eps
        literal = of(DIFFUSION.Psi(t, s), u) + of(sum(parts), eps)
        found = predictor([first], DIFFUSION.level(t), order=1, K=K)
        close(found, literal, 1e-9 * max(literal.abs().max().item(), 1))
        error = (literal - flow(DIRAC, u, t)).abs().max()
        assert error < 1e-9 if K == "R" else error > 1e3
    close(first.at(DIFFUSION.level(t)), predictor([first], DIFFUSION.level(t), order=1))


def test_gddim_17_35_36_37_the_predictor_and_its_indices():
    """From t_i down to t_{i−1}, nodes t_i, t_{i+1}, …; the indices of (17) are a misprint."""
    trail = [NETWORK(start(), DIFFUSION.level(t)) for t in (0.9, 0.7, 0.5)]
    s, t = 0.5, 0.4
    times, weights = between(s, t)
    literal = of(DIFFUSION.Psi(t, s), trail[-1].z)
    for estimate in trail:
        total = torch.zeros(2, 2, dtype=torch.float64)
        for tau, w in zip(times.tolist(), weights.tolist(), strict=True):
            basis = math.prod(
                (tau - e.level.time) / (estimate.level.time - e.level.time)
                for e in trail
                if e is not estimate
            )
            root = torch.linalg.inv(DIFFUSION.R(tau)).mT
            total += w * basis * DIFFUSION.Psi(t, tau) @ NOISE @ root / 2
        literal = literal + of(total, estimate.eps)
    close(predictor(trail, DIFFUSION.level(t), order=3), literal, 1e-11)
    two = predictor(trail, DIFFUSION.level(t), order=2)
    assert (two - literal).abs().max() > 1e-3
    close(predictor(trail[1:], DIFFUSION.level(t), order=4), two)  # while the trail is short


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gddim_algorithm_1_with_40_41_42(order):
    """PECE, with q_cur of the warm start, as printed: u_{i−1} is also evaluated when corrected."""
    u, seen = start(), []  # (time, ε), newest first
    found = list(predict_correct(NETWORK, u, GRID, order=order))

    def moved(nodes, s, t):
        total = of(DIFFUSION.Psi(t, s), u)
        weights = DIFFUSION.weights(s, t, tuple(time for time, _ in nodes))
        return total + sum(w * eps for w, (_, eps) in zip(weights, nodes, strict=True))

    for i, (s, t) in enumerate(pairwise(GRID)):
        seen.insert(0, (s.time, NETWORK(u, s).eps))
        guess = moved(seen[: min(order, i + 1)], s.time, t.time)
        nodes = [(t.time, NETWORK(guess, t).eps), *seen[: min(order, i + 2) - 1]]
        u = moved(nodes, s.time, t.time)
        close(found[i], u, 1e-8)


@pytest.mark.parametrize("method", known.ENDS, ids=str)
def test_five_steps_end_where_they_are_known_to_end(method):
    kind, order, *K = method
    sampler = {
        "predictor": lambda: partial(multistep, rule=partial(predictor, order=order, K=K[0])),
        "predict_correct": lambda: partial(predict_correct, order=order),
        "bdia": lambda: partial(multistep, gamma=order),
    }[kind]()
    wanted = states(known.ENDS[method])
    found = end(sampler, NETWORK, states(known.START), GRID)
    close(found, wanted, 1e-9 * max(wanted.abs().max().item(), 1))


# --- Section 4.2: stochastic ---


def test_gddim_proposition_5_with_18_19_46_one_score_gives_all_scores():
    s, t = 0.8, 0.25
    u, other = start(), start(12)[6:]
    first, Psi = DIRAC(u, DIFFUSION.level(s)), DIFFUSION.Psi(t, s)
    inverse = torch.linalg.inv(DIFFUSION.Sigma(t))
    away = other - of(Psi, u)
    found = of(inverse @ Psi @ DIFFUSION.Sigma(s), score(first)) - of(inverse, away)
    wanted = DIRAC(other, DIFFUSION.level(t))
    close(found, score(wanted), 1e-10)
    root = torch.linalg.inv(DIFFUSION.R(t))
    eps = of(root @ Psi @ DIFFUSION.R(s), first.eps) + of(root, away)
    close(eps, wanted.eps, 1e-10)
    back = DIFFUSION.Psi(0.0, s)
    clean = of(back, of(DIFFUSION.Sigma(s), score(first)) + u)
    close(clean[:, 0], POINT.expand_as(clean[:, 0]), 1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gddim_proposition_6_with_20_48_53_the_mean_and_the_covariance_of_a_step(lam):
    s, t = DIFFUSION.level(0.8), DIFFUSION.level(0.25)
    u = states(known.START)
    eps, Psi = NETWORK(u, s).eps, DIFFUSION.Psi(0.25, 0.8)
    mean = of(Psi, u) + of((DIFFUSION.Psi_hat(0.25, 0.8, lam) - Psi) @ DIFFUSION.R(0.8), eps)
    still = partial(stochastic, lam=lam, noise=torch.zeros_like)
    found = end(still, NETWORK, u, (s, t))
    close(found, mean, 1e-11)
    if lam == 0.5:
        close(found, states(known.STOCHASTIC_MEAN))
    drawn = torch.stack(
        [
            end(
                partial(stochastic, lam=lam, noise=lambda z, n=n: n.expand_as(z)),
                NETWORK,
                u,
                (s, t),
            )
            - found
            for n in torch.eye(2, dtype=torch.float64)[:, None, :, None]
        ]
    )[:, 0, :, 0]
    close(drawn.mT @ drawn, DIFFUSION.P(0.25, 0.8, lam), 1e-11)


def test_gddim_proposition_7_with_62_63_without_noise_it_is_deterministic_gddim():
    u = start()
    grid = quadratic_time(6, DIFFUSION)
    found = list(stochastic(NETWORK, u, grid, lam=0.0))
    close(torch.stack(found), torch.stack(list(multistep(NETWORK, u, grid))), 0)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_a_stochastic_step_is_exact_for_one_data_point(lam):
    """u_s ~ N(Ψ_s x, Σ_s) gives u_t ~ N(Ψ_t x, Σ_t): mean and covariance, by their algebra."""
    s, t = DIFFUSION.level(0.8), DIFFUSION.level(0.1)
    still = partial(stochastic, lam=lam, noise=torch.zeros_like)
    image = torch.tensor([[[0.7], [0.0]]], dtype=torch.float64)
    centre = s.alpha * image
    close(end(still, DIRAC, centre, (s, t)), t.alpha * image, 1e-11)
    basis = torch.eye(2, dtype=torch.float64)[:, :, None]
    moved = end(still, DIRAC, centre + basis, (s, t)) - end(still, DIRAC, centre, (s, t))
    linear = moved[:, :, 0].mT
    covariance = linear @ DIFFUSION.Sigma(0.8) @ linear.mT + DIFFUSION.P(0.1, 0.8, lam)
    close(covariance, DIFFUSION.Sigma(0.1), 1e-11)


# --- The baselines ---


def test_gddim_2_6_euler_maruyama_is_its_formula():
    s, t, lam = DIFFUSION.level(0.8), DIFFUSION.level(0.7), 0.5
    u, fixed = start(), start(12)[6:]
    F = torch.tensor([[0.0, 16.0], [-4.0, -16.0]], dtype=torch.float64)
    dt = t.time - s.time
    drift = of(F, u) - (1 + lam**2) / 2 * of(NOISE, score(NETWORK(u, s)))
    wanted = u + dt * drift + lam * math.sqrt(-dt) * of(NOISE.sqrt(), fixed)
    sampler = partial(em, lam=lam, noise=lambda z: fixed)
    close(end(sampler, NETWORK, u, (s, t)), wanted)


def test_sscs_is_its_three_parts():
    """Half a step of A = [[0, −βM⁻¹], [β, −ΓβM⁻¹]] with its noise, the kick, and half a step."""
    s, t = DIFFUSION.level(0.8), DIFFUSION.level(0.7)
    h, u, fixed = s.time - t.time, start(), start(12)[6:]
    A = torch.tensor([[0.0, -16.0], [4.0, -16.0]], dtype=torch.float64)
    half = torch.linalg.matrix_exp(A * h / 2)
    rest = torch.diag(torch.tensor([1.0, 0.25], dtype=torch.float64))
    root = torch.linalg.cholesky(rest - half @ rest @ half.mT)
    u_half = of(half, u) + of(root, fixed)
    kick = score(NETWORK(u_half, s)) + 4 * u_half
    wanted = of(half, u_half + h * of(NOISE, kick)) + of(root, fixed)
    found = end(partial(sscs, noise=lambda z: fixed), NETWORK, u, (s, t))
    close(found, wanted, 1e-11)


def test_runge_kutta_follows_the_flow():
    u = states(known.START)
    for t, wanted in ((0.3, known.EXACT_AT_03), (1e-3, known.EXACT)):
        close(flow(NETWORK, u, t), states(wanted), 1e-8)
    loose = flow(NETWORK, u, 1e-3, tolerance=1e-5)
    assert 1e-7 < (loose - states(known.EXACT)).abs().max() < 1e-3


def test_the_last_step_is_the_clean_estimate_and_the_paper_s_needs_no_network():
    """Its x is that of an Euler step with F alone, for G Gᵀ acts on v only."""
    u, t = states(known.EXACT), 1e-3
    estimate = NETWORK(u, DIFFUSION.level(t))
    close(estimate.at(CLEAN), states(known.CLEAN_ESTIMATE), 1e-11)
    F = torch.tensor([[0.0, 16.0], [-4.0, -16.0]], dtype=torch.float64)
    paper = u - t * (of(F, u) - of(NOISE, score(estimate)))
    close(paper, states(known.DENOISED), 1e-11)
    close(paper[:, 0], u[:, 0] - t * 16 * u[:, 1], 1e-15)
    assert columns(paper)[0].sub(columns(estimate.x)[0]).abs().max() < 1e-3


def test_an_estimate_of_a_pair_is_its_split():
    level, u = DIFFUSION.level(0.4), start()
    estimate = NETWORK(u, level)
    close(level.alpha * estimate.x + level.sigma * estimate.eps, u)
    close(Estimate.from_x(level, u, estimate.x).eps, estimate.eps, 1e-11)
