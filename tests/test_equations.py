"""The papers' equations, transcribed literally and compared with the code.

Nothing here uses the package's formulas: only its levels and its toy network. Indices are the
papers': t_N is the noisy end, t_0 the clean one. docs/EQUATIONS.md lists which is which and where
the print is wrong.
"""

import math

import pytest
import torch

from bdia_exp.core import Estimate, Level, transfer
from bdia_exp.grids import karras
from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.solvers import heun, multistep

N = 7
RNG = torch.Generator().manual_seed(3)
DATA = GaussianMixture(torch.randn(3, 5, generator=RNG), [0.4, 0.6, 0.9])
NETWORK = DATA.denoiser()
GAMMAS = [0.3, 0.77, 1.0]


ANGLES = [1.42, 1.3, 1.0, 0.85, 0.55, 0.3, 0.2, 0.0]  # uneven; level i at place N − i
VP = tuple(Level(math.cos(a), math.sin(a), a) for a in ANGLES)
VE = tuple(Level(1.0, math.tan(a), math.tan(a)) for a in ANGLES)
Z_N = torch.randn(4, 5, generator=RNG, dtype=torch.float64)


class Paper:
    """BDIA's symbols on a grid: α_i, σ_i, a_i, b_i, ε̂(z, i) and the two Δ of DDIM."""

    def __init__(self, grid):
        self.grid = grid
        self.alpha = [level.alpha for level in grid[::-1]]
        self.sigma = [level.sigma for level in grid[::-1]]

    def level(self, i):
        return self.grid[N - i]

    def eps(self, z, i):
        return NETWORK(z, self.level(i)).eps

    def a(self, i):
        return self.alpha[i - 1] / self.alpha[i]

    def b(self, i):
        return self.sigma[i - 1] - self.sigma[i] * self.alpha[i - 1] / self.alpha[i]

    def forward(self, j, z):
        """Δ(t_j → t_{j−1} | z_j) [BDIA 21]"""
        return self.a(j) * z + self.b(j) * self.eps(z, j) - z

    def backward(self, j, z):
        """Δ(t_{j−1} → t_j | z_{j−1}) [BDIA 23]"""
        x = (z - self.sigma[j - 1] * self.eps(z, j - 1)) / self.alpha[j - 1]
        return self.alpha[j] * x + self.sigma[j] * self.eps(z, j - 1) - z

    def trajectory(self, gamma):
        """{i: z_i} by [BDIA 25] and [BDIA 27]."""
        z = {N: Z_N, N - 1: Z_N + self.forward(N, Z_N)}
        for i in range(N - 1, 0, -1):
            z[i - 1] = (
                z[i + 1]
                - (1 - gamma) * (z[i + 1] - z[i])
                - gamma * self.backward(i + 1, z[i])
                + self.forward(i, z[i])
            )
        return z


def solve(sampler, grid, **options):
    """{i: z_i} of the code."""
    states = [Z_N, *sampler(NETWORK, Z_N, grid, **options)]
    return dict(zip(range(N, -1, -1), states, strict=True))


def same(actual, expected, atol=1e-13):
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=atol)


@pytest.fixture(params=[VP, VE], ids=["vp", "ve"])
def paper(request):
    return Paper(request.param)


# --- BDIA, section 2 ---


def test_bdia_1_forward_process():
    x = DATA.means[0].expand(20_000, -1)
    noise = torch.randn(x.shape, generator=RNG, dtype=torch.float64)
    level = VP[2]
    one = Gaussian(DATA.means[0], 1e-9)
    z = level.alpha * x + level.sigma * noise
    drawn = one.sample(20_000, level, generator=RNG)
    assert (drawn.mean(0) - z.mean(0)).abs().max() < 0.05
    assert (drawn.std(0) / z.std(0) - 1).abs().max() < 0.05


def test_bdia_2_3_probability_flow():
    """dz/dt = f z − ½ g² ∇log q with α = cos t, σ = sin t, along the exact flow."""
    data = Gaussian(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.1, 2.0]))
    t, h = 0.9, 1e-5
    at = [Level(math.cos(u), math.sin(u), u) for u in (t - h, t, t + h)]
    z = torch.randn(4, 3, generator=RNG, dtype=torch.float64)
    slope = (data.flow(z, at[1], at[2]) - data.flow(z, at[1], at[0])) / (2 * h)
    f = -math.tan(t)
    g2 = 2 * math.sin(t) * math.cos(t) - 2 * f * math.sin(t) ** 2
    same(slope, f * z - 0.5 * g2 * data.score(z, at[1]), atol=1e-8)


def test_bdia_5_score_from_noise():
    """∇log q = −(z − α x̂)/σ² = −ε̂/σ."""
    z = Z_N.clone().requires_grad_()
    (score,) = torch.autograd.grad(DATA.log_density(z, VP[3]).sum(), z)
    eps = NETWORK(Z_N, VP[3]).eps
    same(score, -eps / VP[3].sigma)
    same(score, -(Z_N - VP[3].alpha * NETWORK(Z_N, VP[3]).x) / VP[3].sigma ** 2)


# --- BDIA, section 3 ---


@pytest.mark.parametrize("i", [N, 4, 1])
def test_bdia_6_7_ddim_step(paper, i):
    eps = paper.eps(Z_N, i)
    x = (Z_N - paper.sigma[i] * eps) / paper.alpha[i]
    eq6 = paper.alpha[i - 1] * x + paper.sigma[i - 1] * eps
    eq7 = paper.a(i) * Z_N + paper.b(i) * eps
    same(eq6, eq7)
    same(transfer(Z_N, eps, paper.level(i), paper.level(i - 1)), eq6)
    same(next(multistep(NETWORK, Z_N, (paper.level(i), paper.level(i - 1)))), eq7)


def test_bdia_9_undoes_6_when_the_noise_is_known(paper):
    i, eps = 4, paper.eps(Z_N, 4)
    below = paper.a(i) * Z_N + paper.b(i) * eps
    x = (below - paper.sigma[i - 1] * eps) / paper.alpha[i - 1]
    eq9 = paper.alpha[i] * x + paper.sigma[i] * eps
    same(eq9, Z_N)
    same(transfer(below, eps, paper.level(i - 1), paper.level(i)), eq9)


def test_bdia_10_ddim_inversion_and_the_reversed_loop(paper):
    """(10) asks the network at time i; DDIM on grid[::-1], at the state's own time i − 1."""
    i, below = 4, Z_N

    def inverse(eps):
        x = (below - paper.sigma[i - 1] * eps) / paper.alpha[i - 1]
        return paper.alpha[i] * x + paper.sigma[i] * eps

    step = paper.level(i - 1), paper.level(i)
    reversed_loop = next(multistep(NETWORK, below, step))
    eq10 = inverse(paper.eps(below, i))
    same(transfer(below, paper.eps(below, i), *step), eq10)
    same(reversed_loop, inverse(paper.eps(below, i - 1)))
    same(reversed_loop, below + paper.backward(i, below))
    assert (reversed_loop - eq10).abs().max() > 1e-3


@pytest.mark.parametrize("j", [N, 3, 1])
def test_bdia_21_23_24_forward_and_backward_steps(paper, j):
    now = NETWORK(Z_N, paper.level(j))
    same(now.at(paper.level(j - 1)) - Z_N, paper.forward(j, Z_N))
    now = NETWORK(Z_N, paper.level(j - 1))
    eq24 = Z_N / paper.a(j) - paper.b(j) / paper.a(j) * now.eps - Z_N
    same(paper.backward(j, Z_N), eq24)
    same(now.at(paper.level(j)) - Z_N, eq24)


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


def test_bdia_28_gamma_one(paper):
    z = solve(multistep, paper.grid, gamma=1.0)
    for i in range(N - 1, 0, -1):
        same(z[i - 1], z[i + 1] - paper.backward(i + 1, z[i]) + paper.forward(i, z[i]))


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
        back = next(multistep(NETWORK, z[i], step, gamma=1 / gamma, past=past))
        same(back, eq33, atol=1e-12)
        same(back, z[i + 1], atol=1e-12)


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
    same(next(multistep(NETWORK, now, step, gamma=1.0, past=past)), eq33)


# --- BDIA, section 4, and EDM ---


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
