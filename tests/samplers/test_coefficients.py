"""Levels whose coefficients are linear maps: 2×2 matrices over a pair, one number per frequency.

What moves between levels is written for numbers. Here it runs, unchanged, on a small class of
matrices, and is compared with the solution of a linear SDE's probability flow, and with scalar
levels, a frequency at a time.
"""

import math
from collections.abc import Sequence
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from bdia_exp.samplers.core import CLEAN, Estimate, Level, transfer
from bdia_exp.samplers.coupling import CBDIA, EDICT
from bdia_exp.samplers.inversion import BDIAInversion, CoupledInversion
from bdia_exp.samplers.loops import cbdia, edict, heun, multistep
from bdia_exp.samplers.rules import leapfrog, plms
from tests.laws import end


class Matrix:
    """A coefficient [n, n]; it acts on the last dimension of states [B, …, n]."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def _of(self, other: "Matrix | float") -> Tensor:
        """Another coefficient as a matrix: a number is that multiple of the identity."""
        if isinstance(other, Matrix):
            return other.matrix
        return other * torch.eye(len(self.matrix), dtype=torch.float64)

    def __mul__(self, other):
        if isinstance(other, Tensor):
            return other @ self.matrix.mT
        return Matrix(self.matrix @ self._of(other))

    def __rmul__(self, number):
        return Matrix(number * self.matrix)

    def __truediv__(self, other):
        return Matrix(self.matrix @ torch.linalg.inv(self._of(other)))

    def __rtruediv__(self, other):
        inverse = Matrix(torch.linalg.inv(self.matrix))
        return inverse * other

    def __sub__(self, other):
        return Matrix(self.matrix - self._of(other))

    def __rsub__(self, other):
        return Matrix(self._of(other) - self.matrix)


# --- Pairs (x, v): a linear SDE with a 2×2 drift ---


class LinearSDE:
    """dz = F z dt + G dw on pairs (x, v), Gaussian data N(m, Σ_0) at t = 0, as gDDIM has it.

    F = [[0, 4], [−4 (1 + wobble t), −4]], G Gᵀ = diag(0, 8): a damped oscillator. With wobble = 0
    its propagators commute, otherwise not. A = Ψ(t, 0) and R are integrated by Runge-Kutta steps:
    A' = F A, R' = (F + ½ G Gᵀ Σ⁻¹) R with Σ = R Rᵀ [gDDIM's Lemma 1].
    """

    STEPS = 500
    MEAN = torch.tensor([0.7, 0.0], dtype=torch.float64)
    NOISE = torch.tensor([[0.0, 0.0], [0.0, 8.0]], dtype=torch.float64)

    def __init__(self, wobble: float):
        self.wobble = wobble
        a = torch.eye(2, dtype=torch.float64)
        r = torch.diag(torch.tensor([0.6, 0.4], dtype=torch.float64))
        states = [(a, r)]
        for i in range(self.STEPS):
            a, r = runge_kutta(self._slopes, i / self.STEPS, 1 / self.STEPS, (a, r))
            states.append((a, r))
        self.states = states

    def drift(self, t: float) -> Tensor:
        stiffness = -4 * (1 + self.wobble * t)
        return torch.tensor([[0.0, 4.0], [stiffness, -4.0]], dtype=torch.float64)

    def _slopes(self, t, state):
        a, r = state
        pull = self.NOISE @ torch.linalg.inv(r @ r.mT) / 2
        return self.drift(t) @ a, (self.drift(t) + pull) @ r

    def level(self, t: float) -> Level:
        a, r = self.states[round(t * self.STEPS)]
        return Level(Matrix(a), Matrix(r), t)

    def score(self, z: Tensor, t: float) -> Tensor:
        a, r = self.states[round(t * self.STEPS)]
        return -(z - self.MEAN @ a.mT) @ torch.linalg.inv(r @ r.mT)

    def denoiser(self, z: Tensor, level: Level) -> Estimate:
        """ε̂ = −Rᵀ ∇ log q."""
        return Estimate(level, z, self.score(z, level.time) @ -level.sigma.matrix)

    def flow(self, z: Tensor, s: float, t: float) -> Tensor:
        """The solution at t of z' = F z − ½ G Gᵀ ∇ log q from z at s: two grid places a step."""
        first, last = round(s * self.STEPS), round(t * self.STEPS)
        step = 2 if last > first else -2

        def slopes(time, state):
            (z,) = state
            return (z @ self.drift(time).mT - self.score(z, time) @ self.NOISE / 2,)

        for i in range(first, last, step):
            (z,) = runge_kutta(slopes, i / self.STEPS, step / self.STEPS, (z,))
        return z


def runge_kutta(slopes, t: float, h: float, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The classical step of order 4."""

    def moved(by, h):
        return tuple(y + h * k for y, k in zip(state, by, strict=True))

    k1 = slopes(t, state)
    k2 = slopes(t + h / 2, moved(k1, h / 2))
    k3 = slopes(t + h / 2, moved(k2, h / 2))
    k4 = slopes(t + h, moved(k3, h))
    mean = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
    return moved(mean, h)


of_wobble = cache(LinearSDE)


@pytest.fixture(params=[0.0, 3.0], ids=["commuting", "not commuting"])
def sde(request):
    return of_wobble(request.param)


TIMES = [1.0, 0.8, 0.5, 0.3, 0.1, 0.05, 0.01]


def pairs(count: int = 5) -> Tensor:
    """States [B, 3, 2]: three pairs (x, v)."""
    rng = torch.Generator().manual_seed(4)
    return torch.randn(count, 3, 2, dtype=torch.float64, generator=rng)


def nonlinear(z: Tensor, level: Level) -> Estimate:
    """A network that no level is exact for."""
    return Estimate(level, z, (2 * z + level.time).sin() + z.flip(-1) / 3)


def test_the_two_families_are_what_they_are_called():
    for wobble, commutes in ((0.0, True), (3.0, False)):
        sde = of_wobble(wobble)
        a, b = (sde.level(t).alpha.matrix for t in (0.3, 0.8))
        assert torch.allclose(a @ b, b @ a, rtol=0, atol=1e-9) == commutes
        a, r = sde.level(0.3).alpha.matrix, sde.level(0.3).sigma.matrix
        assert not torch.allclose(a @ r, r @ a, rtol=0, atol=1e-3)


def test_gddim_16_a_step_is_exact_for_gaussian_data(sde):
    """A_t A_s⁻¹ z + (R_t − A_t A_s⁻¹ R_s) ε̂ in one step, and in many: the probability flow."""
    z = pairs()
    s, t = sde.level(0.9), sde.level(0.1)
    found = sde.denoiser(z, s).at(t)
    a = t.alpha.matrix @ torch.linalg.inv(s.alpha.matrix)
    eps = z @ torch.linalg.inv(s.sigma.matrix).mT - (
        sde.MEAN @ s.alpha.matrix.mT @ torch.linalg.inv(s.sigma.matrix).mT
    )
    literal = z @ a.mT + eps @ (t.sigma.matrix - a @ s.sigma.matrix).mT
    torch.testing.assert_close(found, literal, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, sde.flow(z, 0.9, 0.1), rtol=0, atol=1e-7)
    grid = tuple(map(sde.level, (0.9, 0.7, 0.4, 0.1)))
    torch.testing.assert_close(end(multistep, sde.denoiser, z, grid), found, rtol=0, atol=1e-11)
    for sampler in (
        partial(multistep, gamma=0.7),
        partial(multistep, rule=leapfrog),
        partial(multistep, rule=plms),
        heun,
        partial(cbdia, gamma1=0.04, gamma2=0.96),
    ):
        torch.testing.assert_close(end(sampler, sde.denoiser, z, grid), found, rtol=0, atol=1e-9)


def test_the_order_of_a_division_is_that_of_the_propagator(sde):
    """A_t A_s⁻¹ takes a noiseless state from s to t; A_s⁻¹ A_t does so only if they commute."""
    s, t = sde.level(0.8), sde.level(0.3)
    x = pairs()
    clean = Estimate(s, s.alpha * x, torch.zeros_like(x))
    torch.testing.assert_close(clean.at(t), t.alpha * x, rtol=0, atol=1e-12)
    torch.testing.assert_close(clean.x, x, rtol=0, atol=1e-12)


def test_the_split_and_the_laws_of_transfer(sde):
    s, t, u = (sde.level(t) for t in (0.9, 0.4, 0.05))
    x, eps = pairs(), pairs(10)[5:]
    z = s.alpha * x + s.sigma * eps
    for estimate in (Estimate(s, z, eps), Estimate.from_x(s, z, x)):
        torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-12)
        torch.testing.assert_close(estimate.x, x, rtol=0, atol=1e-12)
        there = t.alpha * x + t.sigma * eps
        torch.testing.assert_close(estimate.at(t), there, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        transfer(transfer(z, eps, s, t), eps, t, u), transfer(z, eps, s, u), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(transfer(there, eps, t, s), z, rtol=0, atol=1e-12)


def test_rho_is_sigma_after_the_state_is_divided_by_alpha(sde):
    level, eps = sde.level(0.4), pairs()
    noisy = level.sigma * eps / level.alpha
    torch.testing.assert_close(level.rho * eps, noisy, rtol=0, atol=1e-12)
    assert not level.is_noise


@pytest.mark.parametrize(
    "inversion",
    [
        BDIAInversion(1.0),
        BDIAInversion(0.9),
        BDIAInversion(0.0, leapfrog),
        CoupledInversion(EDICT()),
        CoupledInversion(CBDIA(0.04, 0.96)),
    ],
    ids=["bdia 1", "bdia 0.9", "leapfrog", "edict", "cbdia"],
)
def test_round_trips_are_exact(sde, inversion):
    x, grid = pairs(), tuple(map(sde.level, TIMES))
    *_, kept = inversion.encode(nonlinear, x, grid)
    *_, back = inversion.decode(nonlinear, kept, grid)
    assert (kept["z"] - x).abs().max() > 0.1
    torch.testing.assert_close(back["z"], x, rtol=0, atol=1e-12)


def test_bdia_is_its_definition(sde):
    """z_{i−1} = z_{i+1} − (1 − γ)(z_{i+1} − z_i) − γ Δ(t_i → t_{i+1}) + Δ(t_i → t_{i−1})."""
    grid, gamma = tuple(map(sde.level, TIMES)), 0.6
    z = [pairs()]
    z.append(nonlinear(z[0], grid[0]).at(grid[1]))
    for past, now, to in zip(grid, grid[1:], grid[2:], strict=False):
        step = partial(transfer, z[-1], nonlinear(z[-1], now).eps, now)
        forward, backward = step(to) - z[-1], step(past) - z[-1]
        z.append(z[-2] - (1 - gamma) * (z[-2] - z[-1]) - gamma * backward + forward)
    found = list(multistep(nonlinear, z[0], grid, gamma=gamma))
    torch.testing.assert_close(torch.stack(found), torch.stack(z[1:]), rtol=0, atol=1e-12)


# --- One number per frequency ---

N = 6
RATES = torch.linspace(0.0, 0.5, N, dtype=torch.float64)
FREQUENCIES = torch.linalg.qr(
    torch.cos(math.pi / N * torch.outer(torch.arange(N) + 0.5, torch.arange(N))).double()
)[0].mT
"""[N, N]: the discrete cosine transform of a line of N pixels, orthonormal."""


def blurred(t: float) -> tuple[Tensor, float]:
    """Blurring diffusion: α of each frequency, and one σ."""
    return math.cos(t) * torch.exp(-RATES * t**2), math.sin(t)


def of_pixels(t: float) -> Level:
    alpha, sigma = blurred(t)
    return Level(Matrix(FREQUENCIES.mT @ torch.diag(alpha) @ FREQUENCIES), sigma, t)


def of_frequencies(t: float) -> Level:
    return Level(*blurred(t), t)


def one_frequency(t: float, k: int) -> Level:
    alpha, sigma = blurred(t)
    return Level(alpha[k].item(), sigma, t)


ANGLES = [1.4, 1.2, 0.8, 0.5, 0.3, 0.1]


@pytest.mark.parametrize(
    "sampler",
    [
        multistep,
        partial(multistep, gamma=0.7),
        partial(multistep, rule=leapfrog),
        partial(multistep, rule=plms),
        heun,
        edict,
        partial(cbdia, gamma1=0.04, gamma2=0.96),
    ],
)
def test_a_number_per_frequency_is_every_frequency_by_itself(sampler):
    """A matrix on pixels, a tensor on frequencies, and a scalar level for each: one trajectory."""

    def network(z, level):
        return Estimate(level, z, (2 * z + level.time).sin())

    def of_pixels_too(z, level):
        return Estimate(level, z, (2 * z @ FREQUENCIES.mT + level.time).sin() @ FREQUENCIES)

    rng = torch.Generator().manual_seed(2)
    start = torch.randn(4, N, dtype=torch.float64, generator=rng)
    together = end(sampler, network, start, tuple(map(of_frequencies, ANGLES)))
    for k in range(N):
        alone = end(sampler, network, start[:, k], tuple(one_frequency(t, k) for t in ANGLES))
        torch.testing.assert_close(together[:, k], alone, rtol=0, atol=1e-12)
    pixels = end(sampler, of_pixels_too, start @ FREQUENCIES, tuple(map(of_pixels, ANGLES)))
    torch.testing.assert_close(pixels @ FREQUENCIES.mT, together, rtol=0, atol=1e-10)


def test_transfer_to_the_clean_level_undoes_a_blur():
    level, x = of_frequencies(0.8), torch.linspace(-1, 1, N, dtype=torch.float64)[None]
    eps = torch.ones_like(x)
    estimate = Estimate(level, level.alpha * x + level.sigma * eps, eps)
    torch.testing.assert_close(estimate.at(CLEAN), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(level.rho, level.sigma / level.alpha, rtol=0, atol=1e-14)
