"""Exact densities: the denoiser, and for one Gaussian the ODE, is known in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bdia_exp.samplers.core import CLEAN, Denoiser, Estimate, Level


class GaussianMixture:
    """Data x ~ Σ_k w_k N(m_k, diag(s_k²)), and the ideal network for it.

    means [K, ...] gives the shape of one sample: [K, C, H, W] for images, [K, D] for points.
    stds broadcasts to it from the left: a number, [K], or [K, ...]. weights [K] default to equal.
    States are [B, ...]; their trailing dimensions are one vector. All arithmetic is float64.

    Raises ValueError unless every std and weight is positive.
    """

    def __init__(self, means, stds, weights: Sequence[float] | None = None):
        means = torch.as_tensor(means, dtype=torch.float64)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim)).expand(means.shape)
        shares = torch.as_tensor(weights or [1.0] * len(means), dtype=torch.float64)
        if not (bool((stds > 0).all()) and bool((shares > 0).all())):
            raise ValueError("every std and every weight of a mixture must be positive")
        self.shape = means.shape[1:]
        self.means, self.stds = means.flatten(1), stds.flatten(1)
        self.weights = shares / shares.sum()
        self.mean = (self.weights[:, None] * self.means).sum(0).reshape(self.shape)

    def _noised(self, level: Level) -> tuple[Tensor, Tensor]:
        """Means and variances [K, D] of the components of q at a level."""
        return level.alpha * self.means, (level.alpha * self.stds) ** 2 + level.sigma**2

    def log_density(self, z: Tensor, level: Level) -> Tensor:
        """log q(z; α, σ), [B]."""
        return self._log_joint(z, level).logsumexp(1)

    def score(self, z: Tensor, level: Level) -> Tensor:
        """∇ log q(z; α, σ), in the shape and dtype of z."""
        means, variances = self._noised(level)
        shares = self._log_joint(z, level).softmax(1)
        pulls = (means - z.double().flatten(1)[:, None]) / variances
        return (shares[:, :, None] * pulls).sum(1).reshape(z.shape).to(z.dtype)

    def denoiser(self) -> Denoiser:
        """The ideal network: ε̂ = −σ ∇ log q [BDIA 5].

        At σ = 0 it is 0, and x̂ is z/α. At pure noise it is z/σ, and x̂ the mean of the data.
        """

        def denoise(z: Tensor, level: Level) -> Estimate:
            clean = self.mean.to(z.dtype).expand_as(z) if level.is_noise else None
            return Estimate(level, z, -level.sigma * self.score(z, level), clean)

        return denoise

    def sample(self, count: int, level: Level = CLEAN, *, generator=None) -> Tensor:
        """[count, ...] draws of q at a level; of the data themselves by default."""
        means, variances = self._noised(level)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, means.shape[1], generator=generator, dtype=torch.float64)
        return (means[which] + variances[which].sqrt() * noise).reshape(count, *self.shape)

    def _log_joint(self, z: Tensor, level: Level) -> Tensor:
        """log (w_k N(z; component k of q)), [B, K]."""
        means, variances = self._noised(level)
        square = (z.double().flatten(1)[:, None] - means) ** 2 / variances
        return self.weights.log() - 0.5 * (square + (2 * torch.pi * variances).log()).sum(2)


class Gaussian(GaussianMixture):
    """One Gaussian, mean [...] and std a number or [...]: its probability flow is known."""

    def __init__(self, mean, std):
        mean = torch.as_tensor(mean, dtype=torch.float64)
        std = torch.as_tensor(std, dtype=torch.float64).expand(mean.shape)
        super().__init__(mean[None], std[None])

    def flow(self, z: Tensor, s: Level, t: Level) -> Tensor:
        """The exact solution at level t of the ODE [BDIA 2] that passes through z at level s."""
        (start, start_var), (end, end_var) = self._noised(s), self._noised(t)
        moved = end + (end_var / start_var).sqrt() * (z.double().flatten(1) - start)
        return moved.reshape(z.shape).to(z.dtype)
