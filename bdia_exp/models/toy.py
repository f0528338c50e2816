"""Exact densities: the denoiser, and for one Gaussian the ODE, is known in closed form."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bdia_exp.errors import UserError, brief
from bdia_exp.models import Condition, OfPixels
from bdia_exp.models.running import Running
from bdia_exp.samplers.core import CLEAN, Denoiser, Estimate, Level
from bdia_exp.samplers.schedules import linear_vp


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


class ToyImages(OfPixels):
    """A `Model` of grey images without a network: each class is a Gaussian around a smooth picture.

    It costs next to nothing, so it is for runs of very many images. means [10, 1, 32, 32] are the
    pictures; every pixel has the standard deviation STD.
    """

    STD = 0.3

    networks: Mapping[str, nn.Module] = {}

    def __init__(self, means: Tensor, provenance: Mapping[str, object]):
        self.means, self.provenance = means, provenance
        self.num_classes, self.device = len(means), means.device
        channels, height, width = means.shape[1:]
        self.shape = self.image_shape = (channels, height, width)
        self.schedule = linear_vp()

    def denoiser(self, condition: Condition) -> Denoiser:
        mean = self.means.mean(0)
        if isinstance(condition, Tensor):
            mean = self.means[condition.to(self.device)]

        def denoise(z: Tensor, level: Level) -> Estimate:
            variance = (level.alpha * self.STD) ** 2 + level.sigma**2
            clean = mean.to(z.dtype).expand_as(z) if level.is_noise else None
            return Estimate(level, z, level.sigma * (z - level.alpha * mean) / variance, clean)

        return denoise

    def decode(self, z: Tensor) -> Tensor:
        """EDM's rounding: 127.5 x + 128, clipped and truncated."""
        return (z * 127.5 + 128).clip(0, 255).to(torch.uint8)


def load(checkpoint: str, **how: Any) -> ToyImages:
    """Toy images whose pictures are drawn with a seed: `checkpoint` is random:SEED.

    `how` are the arguments of `Running`. There is no network, so only the device has an effect: all
    is float64. Raises UserError for another `checkpoint`.
    """
    running = Running(**how)
    match = re.fullmatch(r"random:(\d{1,9})", checkpoint, re.ASCII)
    if not match:
        raise UserError(f"checkpoint={brief(checkpoint)}: give a seed, such as random:0")
    generator = torch.Generator().manual_seed(int(match[1]))
    coarse = torch.rand(10, 1, 4, 4, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    means = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    found = hashlib.sha256(means.numpy().tobytes()).hexdigest()
    provenance = {"parameters": 0, "checkpoint": checkpoint, "sha256": found}
    return ToyImages(means.to(running.device), provenance)
