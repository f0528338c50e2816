"""BDIA, sections 2 and 3, to (20): the forward process, DDIM and EDICT, transcribed literally.

The rules are those of paper.py; docs/EQUATIONS.md lists which test is which equation and where the
print is wrong.
"""

import math

import pytest
import torch

from bdia_exp.models.toy import Gaussian
from bdia_exp.samplers.core import Level, transfer
from bdia_exp.samplers.coupling import EDICT
from bdia_exp.samplers.inversion import DDIMInversion
from bdia_exp.samplers.loops import coupled, edict, multistep
from tests.samplers.paper import DATA, NETWORK, RNG, SMOOTH, VP, Z_N, N, angle, largest, same, solve

pytestmark = pytest.mark.quick

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


@pytest.mark.parametrize("p", EDICT_P)
def test_edict_may_update_y_first_at_every_other_step(paper, p):
    """EDICT's public code: at steps N − 1, N − 3, … (12) and then (11) update; (13)-(14) stay."""
    coupling = EDICT(p, alternate=True)
    pairs = [(Z_N, Z_N.flip(0))]
    for i in range(N, 0, -1):
        z, y = pairs[-1]
        a, b = paper.a(i), paper.b(i)
        if (N - i) % 2:
            y = a * y + b * paper.eps(z, i)
            z = a * z + b * paper.eps(y, i)
        else:
            z = a * z + b * paper.eps(y, i)
            y = a * y + b * paper.eps(z, i)
        z = p * z + (1 - p) * y
        pairs.append((z, p * y + (1 - p) * z))
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
