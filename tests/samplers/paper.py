"""BDIA's symbols, levels and a toy network, for the tests of the papers' equations.

Nothing here uses the package's formulas: only its levels and its toy network. Indices are the
papers': t_N is the noisy end, t_0 the clean one.
"""

import math

import torch

from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.samplers.core import Level

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


SMOOTH = Gaussian(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.1, 2.0]))


def angle(t):
    return Level(math.cos(t), math.sin(t), t)


def largest(pair, other):
    return max(float((a - b).abs().max()) for a, b in zip(pair, other, strict=True))
