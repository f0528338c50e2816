"""Linear diffusions: matrices against independent values and against their own ODEs."""

import math

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import CLEAN, Estimate, transfer
from bdia_exp.samplers.diagonal import VP, Blur
from bdia_exp.samplers.grids import arc, karras, quadratic_time
from bdia_exp.samplers.linear import CLD, LinearLevel
from bdia_exp.samplers.mix import Mix
from bdia_exp.samplers.quadrature import between
from bdia_exp.samplers.schedules import is_edm, is_vp, linear_vp, linear_vp_time
from tests.samplers import cld_values as known
from tests.samplers.test_coefficients import runge_kutta

pytestmark = pytest.mark.quick

DIFFUSION = CLD()
OTHER = CLD(beta=2.0, M_inv=1.0, Gamma=2.0, gamma=0.5, eps=1e-2)
"""Slower and smoother: an ODE from t = 0 can be integrated in few steps."""


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def as_tensor(mixes):
    return torch.stack([tensor([[m.xx, m.xv], [m.vx, m.vv]]) for m in mixes])


def close(found, wanted, atol=1e-12):
    torch.testing.assert_close(found, tensor(wanted), rtol=0, atol=atol)


# --- Against values from elsewhere ---


def test_psi_sigma_r_and_l():
    for (t, s), wanted in known.PSI.items():
        close(DIFFUSION.Psi(t, s), wanted)
    for t, wanted in known.SIGMA.items():
        close(DIFFUSION.Sigma(t), wanted)
        close(DIFFUSION.L(t) @ DIFFUSION.L(t).mT, wanted)
        assert DIFFUSION.L(t)[0, 1] == 0
    for t, wanted in known.R.items():
        close(DIFFUSION.R(t), wanted)
    for t, wanted in known.ANGLE.items():
        close(DIFFUSION.angle(tensor(t)), wanted)
    for t, wanted in known.SIGMA_EFF.items():
        assert DIFFUSION.sigma_eff(t) == pytest.approx(wanted, rel=1e-13)


def test_at_time_zero_the_noise_is_that_of_hybrid_score_matching():
    wanted = [[1e-3, 0.0], [0.0, math.sqrt(0.01 + 1e-6)]]
    close(DIFFUSION.R(0.0), wanted, 1e-16)
    close(DIFFUSION.Psi(0.0), [[1.0, 0.0], [0.0, 1.0]], 0)
    assert DIFFUSION.sigma_eff(0.0) == pytest.approx(1e-3)


def test_gddim_17_37_42_the_integrals_of_the_multistep_methods():
    for nodes, wanted in (
        ((0.6, 0.8, 0.95), known.PREDICTOR_3),
        ((0.6,), [known.PREDICTOR_1]),
        ((0.3, 0.6, 0.8), known.CORRECTOR_3),
    ):
        close(as_tensor(DIFFUSION.weights(0.6, 0.3, nodes)), wanted, 2e-12)


def test_psi_hat_and_p():
    for lam, wanted in known.PSI_HAT.items():
        close(DIFFUSION.Psi_hat(0.25, 0.8, lam), wanted)
    for lam, wanted in known.P.items():
        close(DIFFUSION.P(0.25, 0.8, lam), wanted)


# --- Against their own equations ---


def noise(diffusion):
    return torch.diag(tensor([0.0, 2 * diffusion.Gamma * diffusion.beta]))


def force(diffusion):
    F, G = diffusion.drift(0.0)
    torch.testing.assert_close(as_tensor([G * G])[0], noise(diffusion), rtol=1e-15, atol=0)
    return as_tensor([F])[0]


def integrated(slopes, s, t, start, steps=400):
    h = (t - s) / steps
    for i in range(steps):
        start = runge_kutta(slopes, s + i * h, h, start)
    return start


def test_gddim_10_14_15_44_the_matrices_solve_their_odes():
    """Ψ' = F Ψ, Σ' = F Σ + Σ Fᵀ + G Gᵀ, R' = (F + ½ G Gᵀ Σ⁻¹) R, from their values at 0."""
    F, GG = force(OTHER), noise(OTHER)

    def slopes(t, state):
        psi, sigma, root = state
        pull = F + GG @ torch.linalg.inv(sigma) / 2
        return F @ psi, F @ sigma + sigma @ F.mT + GG, pull @ root

    state = OTHER.Psi(0.0), OTHER.Sigma(0.0), OTHER.R(0.0)
    for s, t in ((0.0, 0.02), (0.02, 0.3), (0.3, 1.0)):
        state = integrated(slopes, s, t, state)
        for found, exact in zip(state, (OTHER.Psi(t), OTHER.Sigma(t), OTHER.R(t)), strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
        root = OTHER.R(t)
        torch.testing.assert_close(root @ root.mT, OTHER.Sigma(t), rtol=0, atol=1e-15)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 2.0])
def test_gddim_21_74_psi_hat_and_p_solve_their_odes(lam):
    """dP/dτ = F̂ P + P F̂ᵀ − λ² G Gᵀ, from s down to t: the sign + of (21) gives −P."""
    F, GG = force(DIFFUSION), noise(DIFFUSION)

    def slopes(t, state):
        moved = F + (1 + lam**2) / 2 * GG @ torch.linalg.inv(DIFFUSION.Sigma(t))
        psi, down, up = state
        turned = [moved @ p + p @ moved.mT for p in (down, up)]
        return moved @ psi, turned[0] - lam**2 * GG, turned[1] + lam**2 * GG

    zero = torch.zeros(2, 2, dtype=torch.float64)
    start = torch.eye(2, dtype=torch.float64), zero, zero
    psi, down, up = integrated(slopes, 0.8, 0.25, start)
    torch.testing.assert_close(DIFFUSION.Psi_hat(0.25, 0.8, lam), psi, rtol=0, atol=1e-8)
    torch.testing.assert_close(DIFFUSION.P(0.25, 0.8, lam), down, rtol=0, atol=1e-8)
    torch.testing.assert_close(down, -up, rtol=0, atol=1e-12)


def test_psi_hat_has_closed_forms_at_lambda_0_and_1():
    for s, t in ((1.0, 1e-3), (0.8, 0.25), (0.01, 0.009)):
        flow = DIFFUSION.R(t) @ torch.linalg.inv(DIFFUSION.R(s))
        torch.testing.assert_close(DIFFUSION.Psi_hat(t, s, 0.0), flow, rtol=0, atol=1e-12)
        back = DIFFUSION.Psi(s, t).mT @ torch.linalg.inv(DIFFUSION.Sigma(s))
        reverse = DIFFUSION.Sigma(t) @ back
        torch.testing.assert_close(DIFFUSION.Psi_hat(t, s, 1.0), reverse, rtol=0, atol=2e-12)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_p_is_what_is_missing_to_sigma_and_is_drawn(lam):
    s, t = 0.8, 0.25
    psi, root = DIFFUSION.Psi_hat(t, s, lam), DIFFUSION.R(t)
    missing = DIFFUSION.Sigma(t) - psi @ DIFFUSION.Sigma(s) @ psi.mT
    torch.testing.assert_close(DIFFUSION.P(t, s, lam), missing, rtol=0, atol=1e-12)
    kept, drawn = as_tensor(DIFFUSION.kept(s, t, lam))
    torch.testing.assert_close(root @ kept @ torch.linalg.inv(DIFFUSION.R(s)), psi)
    covariance = root @ drawn @ drawn.mT @ root.mT
    torch.testing.assert_close(covariance, missing, rtol=0, atol=1e-12)


def test_sigma_eff_is_the_error_of_the_best_observation():
    """No weights w with wᵀ Ψ (1, 0) = 1 have less noise wᵀ Σ w."""
    for t in (1e-3, 0.1, 1.0):
        (w_x, w_v), sigma = DIFFUSION.observation(t)
        w, lead = tensor([w_x, w_v]), DIFFUSION.Psi(t)[:, 0]
        assert w @ lead == pytest.approx(1)
        assert w @ DIFFUSION.Sigma(t) @ w == pytest.approx(sigma**2)
        across = tensor([-lead[1], lead[0]]) / lead.norm() * w.norm()
        for shift in (-1e-3, 1e-3):
            other = w + shift * across
            assert other @ DIFFUSION.Sigma(t) @ other > sigma**2


# --- Levels ---


def test_a_level_is_psi_and_r_and_knows_its_diffusion():
    level = DIFFUSION.level(0.3)
    assert isinstance(level, LinearLevel)
    assert level.diffusion == DIFFUSION
    assert level == DIFFUSION(0.3) == (level.alpha, level.sigma, 0.3)
    assert level != CLD(beta=2.0).level(0.3)
    assert hash(level) == hash(CLD().level(0.3))
    close(as_tensor([level.alpha, level.sigma])[1], known.R[0.3])
    kinds = level.is_scalar, level.is_noise, is_vp(level), is_edm(level)
    assert not any(kinds)
    rho = torch.linalg.inv(DIFFUSION.Psi(0.3)) @ DIFFUSION.R(0.3)
    torch.testing.assert_close(as_tensor([level.rho])[0], rho, rtol=1e-12, atol=1e-12)


def test_a_mix_is_its_matrix():
    rng = torch.Generator().manual_seed(0)
    a, b, u = (torch.randn(2, 2, dtype=torch.float64, generator=rng) for _ in range(3))
    m, n = Mix.of(a), Mix.of(b)
    eye = torch.eye(2, dtype=torch.float64)
    for found, wanted in (
        (m * n, a @ b),
        (m / n, a @ torch.linalg.inv(b)),
        (m - n, a - b),
        (2.0 * m, 2 * a),
        (1.0 - m, eye - a),
        (m - 1.0, a - eye),
        (1.0 / m, torch.linalg.inv(a)),
        (m.T, a.mT),
    ):
        torch.testing.assert_close(as_tensor([found])[0], wanted, rtol=0, atol=1e-13)
    state = u[None, :, :, None, None].expand(3, 2, 2, 4, 5)  # [B, pair, C, H, W]
    torch.testing.assert_close((m * state)[0, :, :, 0, 0], a @ u)
    torch.testing.assert_close((state / m)[0, :, :, 0, 0], torch.linalg.solve(a, u))
    assert m.power == pytest.approx(float(a.square().sum() / 2))
    assert m == Mix.of(a.clone())
    assert m != n
    assert m != 1.0
    for wrong in (torch.zeros(2), torch.zeros(4, 3, 2)):
        with pytest.raises(ValueError, match=r"\[B, 2, …\]"):
            m * wrong


def test_the_grid_is_even_in_the_root_of_time():
    grid = quadratic_time(5, DIFFUSION, final="first")
    wanted = [1.0, 0.6501592885125388, 0.3753389327688082, 0.17553893276880822]
    assert [level.time for level in grid] == pytest.approx([*wanted, 0.05075928851253881, 1e-3])
    with_clean = quadratic_time(6, DIFFUSION)
    assert with_clean == (*grid, CLEAN)
    assert quadratic_time(1, DIFFUSION) == (DIFFUSION.level(1.0), CLEAN)


# --- Without mixing ---


def test_gddim_8_55_the_vp_diffusion_is_that_of_ddpm():
    """In the limit of its thousand steps: ᾱ of `linear_vp`, whose clock is `linear_vp_time`."""
    vp, table = VP(), linear_vp()
    for t in (0.01, 0.3, 1.0):
        level = vp.level(t)
        assert is_vp(level)
        assert linear_vp_time(level.rho) == pytest.approx(t)
        assert table(round(1000 * t) - 1).rho == pytest.approx(level.rho, rel=0.04)


@pytest.mark.parametrize("diffusion", [VP(), Blur(4, 4)], ids=["vp", "blur"])
def test_levels_without_mixing_solve_their_odes(diffusion):
    """α' = F α and (σ²)' = 2 F σ² + G², by central differences."""
    for t in (0.1, 0.5, 0.8):
        h = 1e-6
        (a, s, _), (b, r, _), (alpha, sigma, _) = map(diffusion.level, (t + h, t - h, t))
        F, G = diffusion.drift(t)
        for found, wanted in (
            ((a - b) / (2 * h), F * alpha),
            ((s**2 - r**2) / (2 * h), 2 * F * sigma**2 + G**2),
        ):
            scale = torch.as_tensor(wanted).abs().max().item()
            assert torch.as_tensor(found - wanted).abs().max() < 1e-7 * max(scale, 1)


def test_the_noise_that_blurring_adds():
    """By hand, at frequency (1, 1) of 8×8: blurring takes signal away, so G² is not −(ᾱ)'."""
    assert Blur(8, 8).drift(0.5)[1][1, 1] ** 2 == pytest.approx(26.2, abs=0.05)


def test_a_frequency_of_blurring_is_a_scalar_diffusion_of_its_own():
    """The line, and the integral of (16) with this F and G: the same for every frequency."""
    diffusion = Blur(4, 4, blur=1.0)
    s, t = diffusion.level(0.6), diffusion.level(0.2)
    rng = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=rng)
    moved = transfer(z, eps, s, t)
    (weight,) = diffusion.weights(0.6, 0.2, (0.6,))
    torch.testing.assert_close(t.alpha / s.alpha * z + weight * eps, moved, rtol=0, atol=1e-9)
    estimate = Estimate(s, s.alpha * z + s.sigma * eps, eps)
    torch.testing.assert_close(estimate.x, z, rtol=0, atol=1e-11)


def test_an_integral_has_its_value_and_its_direction():
    times, weights = between(0.7, 1e-3)
    assert (times**3) @ weights == pytest.approx((1e-12 - 0.7**4) / 4, rel=1e-12)


# --- Bad input ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"Gamma": 4.0}, r"2/√M_inv = 1"),
        ({"M_inv": 1.0}, r"2/√M_inv = 2"),
        ({"beta": 0.0}, "1e-12 to 1e12"),
        ({"gamma": -1.0}, "1e-12 to 1e12"),
        ({"gamma": 1e300}, "1e-12 to 1e12"),
        ({"M_inv": 1e300, "Gamma": 2e-150}, "1e-12 to 1e12"),
    ],
)
def test_numbers_that_are_no_cld_are_refused(arguments, told):
    with pytest.raises(UserError, match=told):
        CLD(**arguments)


def test_times_and_schedules_of_another_kind_are_refused():
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="times from 0 to 1"):
            DIFFUSION.level(t)
    with pytest.raises(UserError, match="grid=quadratic_time"):
        DIFFUSION.at(3.0)
    for schedule in (None, linear_vp()):
        with pytest.raises(UserError, match="diffusion=cld"):
            quadratic_time(5, schedule)
    for t_min in (0.0, 1.0):
        with pytest.raises(UserError, match="above 0 and below 1"):
            quadratic_time(5, DIFFUSION, t_min=t_min)
    with pytest.raises(UserError, match="final"):
        quadratic_time(5, DIFFUSION, final="last")
    with pytest.raises(UserError, match="grid=quadratic_time"):
        arc(5, DIFFUSION)
    assert karras(3, DIFFUSION)[0].is_scalar  # a model of pairs refuses its levels
