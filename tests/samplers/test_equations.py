"""The papers' equations, transcribed literally and compared with the code.

Nothing here uses the package's formulas: only its levels and its toy network. Indices are the
papers': t_N is the noisy end, t_0 the clean one. docs/EQUATIONS.md lists which is which and where
the print is wrong. BDIA's sections 2 to 4 and EDM are here, its appendices, and what they build on,
in test_equations_appendix.py.
"""

import math
from itertools import pairwise

import pytest
import torch

from bdia_exp.core import Estimate, Level, transfer
from bdia_exp.coupling import EDICT
from bdia_exp.grids import karras
from bdia_exp.inversion import BDIAInversion, DDIMInversion
from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.rules import leapfrog
from bdia_exp.solvers import bdia, coupled, edict, heun, multistep

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

    def rho(self, i):
        return self.sigma[i] / self.alpha[i]

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
    same(next(DDIMInversion().encode(NETWORK, below, step[::-1]))["z"], eq10)
    same(next(DDIMInversion("own").encode(NETWORK, below, step[::-1]))["z"], reversed_loop)
    assert (reversed_loop - eq10).abs().max() > 1e-3


SMOOTH = Gaussian(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.1, 2.0]))


def angle(t):
    return Level(math.cos(t), math.sin(t), t)


def test_bdia_8_20_ddim_approximates_the_integral():
    """One step misses the exact flow by O(h²), the sum (19) of all steps by O(h)."""
    z = Z_N[:, :3]
    predict = SMOOTH.denoiser()

    def one_step(h):
        eps = predict(z, angle(0.9)).eps
        a = math.cos(0.9 - h) / math.cos(0.9)
        eq7 = a * z + (math.sin(0.9 - h) - a * math.sin(0.9)) * eps
        return (SMOOTH.flow(z, angle(0.9), angle(0.9 - h)) - eq7).abs().max()

    def many_steps(steps):
        grid = [angle(1.3 - i / steps) for i in range(steps + 1)]
        *_, last = multistep(predict, z, grid)
        return (SMOOTH.flow(z, grid[0], grid[-1]) - last).abs().max()

    assert math.log2(one_step(0.01) / one_step(0.005)) == pytest.approx(2, abs=0.05)
    assert math.log2(many_steps(200) / many_steps(400)) == pytest.approx(1, abs=0.05)


EDICT_P = [0.5, 0.93, 1.0]


def eq11_14(paper, i, z, y, p):
    z_inter = paper.a(i) * z + paper.b(i) * paper.eps(y, i)
    y_inter = paper.a(i) * y + paper.b(i) * paper.eps(z_inter, i)
    z_next = p * z_inter + (1 - p) * y_inter
    y_next = p * y_inter + (1 - p) * z_next
    return z_next, y_next


def eq15_18(paper, i, z, y, p, *, eq16="y_inter"):
    """(z_i, y_i) of (z_{i−1}, y_{i−1}); eq16 names what (16) subtracts."""
    y_inter = (y - (1 - p) * z) / p
    z_inter = (z - (1 - p) * {"y_inter": y_inter, "y": y}[eq16]) / p
    y_before = (y_inter - paper.b(i) * paper.eps(z_inter, i)) / paper.a(i)
    z_before = (z_inter - paper.b(i) * paper.eps(y_before, i)) / paper.a(i)
    return z_before, y_before


def largest(pair, other):
    return max(float((a - b).abs().max()) for a, b in zip(pair, other, strict=True))


@pytest.mark.parametrize("p", EDICT_P)
def test_bdia_11_14_edict(paper, p):
    for i in (N, 4, 1):
        pair = Z_N, Z_N.flip(0)
        step = EDICT(p).step(NETWORK, pair, paper.level(i), paper.level(i - 1), N - i)
        same(step, eq11_14(paper, i, *pair, p))
    pair = Z_N, Z_N
    for i, z in zip(range(N, 0, -1), edict(NETWORK, Z_N, paper.grid, p=p), strict=True):
        pair = eq11_14(paper, i, *pair, p)
        same(z, pair[0], atol=1e-12)


def test_edict_may_exchange_the_roles_at_every_other_step(paper):
    """Steps N − 1, N − 3, … are (11)-(14) with z and y exchanged."""
    coupling = EDICT(0.93, alternate=True)
    pairs = [(Z_N, Z_N.flip(0))]
    for i in range(N, 0, -1):
        z, y = pairs[-1]
        odd = (N - i) % 2
        pairs.append(eq11_14(paper, i, y, z, 0.93)[::-1] if odd else eq11_14(paper, i, z, y, 0.93))
    same(list(coupled(NETWORK, pairs[0], paper.grid, coupling)), pairs[1:], atol=1e-12)
    back = list(coupled(NETWORK, pairs[-1], paper.grid, coupling, undo=True))
    same(back, pairs[-2::-1], atol=1e-12)


@pytest.mark.parametrize("p", EDICT_P)
def test_bdia_15_18_edict_undone(paper, p):
    for i in (N, 4, 1):
        step = paper.level(i), paper.level(i - 1), N - i
        pair = Z_N, Z_N.flip(0)
        same(EDICT(p).undo(NETWORK, pair, *step), eq15_18(paper, i, *pair, p), atol=1e-12)
        there = eq11_14(paper, i, *pair, p)
        same(EDICT(p).undo(NETWORK, there, *step), pair, atol=1e-12)


def test_bdia_16_needs_the_intermediate_y(paper):
    """Its print has the index i − 1; y_{i−1} itself would not undo (13)."""
    pair = Z_N, Z_N.flip(0)
    there = eq11_14(paper, 4, *pair, 0.93)
    assert largest(eq15_18(paper, 4, *there, 0.93), pair) < 1e-12
    assert largest(eq15_18(paper, 4, *there, 0.93, eq16="y"), pair) > 1e-3


def test_bdia_19_sum_of_forward_steps(paper):
    z = solve(multistep, paper.grid)
    for i in range(N, 0, -1):
        same(z[i - 1], z[N] + sum(paper.forward(j, z[j]) for j in range(i, N + 1)))


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
