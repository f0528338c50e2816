"""Exact densities of pairs (x, v), for tests on the levels of `CLD`.

Data are x with v = 0; the state is u = Ψ (x, 0) + R ε. States are [B, 2, 1].
"""

import math

import torch
from torch import Tensor

from bdia_exp.models.langevin import paired
from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.samplers.core import Estimate
from bdia_exp.samplers.grids import quadratic_time
from bdia_exp.samplers.linear import CLD
from tests.samplers.cld_values import EXACT, START

DIFFUSION = CLD()
MEANS, STDS, WEIGHTS = [[-0.8], [0.5]], [0.15, 0.25], [0.4, 0.6]
MIXTURE = GaussianMixture(MEANS, STDS, WEIGHTS)
NETWORK = paired(MIXTURE.denoiser(), DIFFUSION)
POINT = torch.tensor([0.7], dtype=torch.float64)
"""The only data point of a Dirac distribution."""


def dirac(z, level):
    """The ideal network of EDM's levels for the data point `POINT`."""
    return Estimate.from_x(level, z, POINT.expand_as(z))


DIRAC = paired(dirac, DIFFUSION)
GAUSSIAN = paired(Gaussian(POINT, 0.4).denoiser(), DIFFUSION)


def states(columns) -> Tensor:
    """[[x, …], [v, …]] as states [B, 2, 1]."""
    return torch.tensor(columns, dtype=torch.float64).T[:, :, None]


def columns(u: Tensor) -> Tensor:
    """States [B, 2, 1] as [2, B]."""
    return u[:, :, 0].T


def start(count: int = 6) -> Tensor:
    """Draws at rest, at t = 1."""
    rng = torch.Generator().manual_seed(3)
    scale = torch.tensor([1.0, 0.5], dtype=torch.float64)[:, None]
    return torch.randn(count, 2, 1, dtype=torch.float64, generator=rng) * scale


def score_of_mixture(u: Tensor, t: float) -> Tensor:
    """∇ log p_t, from the Gaussians of pairs themselves: Ψ (m, 0), Σ + s² ψ ψᵀ, ψ = Ψ (1, 0)."""
    lead = DIFFUSION.Psi(t)[:, 0]
    logs, pulls = [], []
    for (mean,), std, weight in zip(MEANS, STDS, WEIGHTS, strict=True):
        covariance = DIFFUSION.Sigma(t) + std**2 * torch.outer(lead, lead)
        away = u[:, :, 0] - mean * lead
        pulls.append(-torch.linalg.solve(covariance, away.T).T)
        square = -(away * pulls[-1]).sum(1)
        logs.append(math.log(weight) - 0.5 * (square + torch.logdet(covariance)))
    shares = torch.stack(logs).softmax(0)
    return (shares[:, :, None] * torch.stack(pulls)).sum(0)[:, :, None]


def error(sampler, steps: int) -> float:
    """The largest error of x and v at t = 1e-3, against the exact solution from `START`."""
    *_, end = sampler(NETWORK, states(START), quadratic_time(steps, DIFFUSION, final="first"))
    return (end - states(EXACT)).abs().max().item()
