"""Any EDM or VP model as a critically-damped Langevin model, without training (docs/gddim.md).

A pair u = (x, v) at time t is two noisy observations of one clean pixel, with the same 2×2 matrices
for every pixel. They have a sufficient statistic, y = x_0 + σ_eff N(0, 1), one number a pixel. So
E[x_0 | u] = D(y; σ_eff): the model's own denoiser gives the score of the pair.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bdia_exp.errors import UserError
from bdia_exp.models import Condition, Model
from bdia_exp.samplers.core import CLEAN, Denoiser, Estimate, Level
from bdia_exp.samplers.linear import CLD, LinearLevel
from bdia_exp.samplers.schedules import edm
from bdia_exp.seeds import Generators

ENDS = 10.0, 1e12
"""The bounds of σ_eff at t = 1. Below, a start at rest is no state of that time; above, float64
cannot tell the image from the noise."""
MOST_SIGMA = 80.0
"""The greatest σ that a network is asked about, if it does not state a smaller one: EDM's."""


class Langevin:
    """A model of images as a `Model` of pairs (x, v): states are [B, 2, C, H, W]."""

    takes_text = takes_guidance = False

    def __init__(self, own: Model, diffusion: CLD):
        self.own, self.schedule = own, diffusion
        self.shape = (2, *own.shape)
        self.image_shape, self.num_classes = own.image_shape, own.num_classes
        self.networks: Mapping[str, nn.Module] = own.networks
        self.device, self.provenance = own.device, own.provenance

    def start(self, rng: Generators, level: Level) -> Tensor:
        """At rest, where every level of the diffusion ends: x is N(0, 1) and v is N(0, M)."""
        u = rng.randn(self.shape).double()
        u[:, 1] /= self.schedule.M_inv**0.5
        return u.to(self.device)

    def denoiser(self, condition: Condition) -> Denoiser:
        least, most = self.own.schedule.supported
        most = min(most, self.own.schedule.rho_max, MOST_SIGMA)
        return paired(self.own.denoiser(condition), self.schedule, least, most)

    def decode(self, z: Tensor) -> Tensor:
        """The images of x; v is dropped."""
        return self.own.decode(z[:, 0])

    def encode(self, images: Tensor) -> Tensor:
        """x from the images, v = 0 as in the data."""
        x = self.own.encode(images)
        return torch.stack([x, torch.zeros_like(x)], 1)


def paired(
    own: Denoiser, diffusion: CLD, least: float = 0.0, most: float = float("inf")
) -> Denoiser:
    """The denoiser of pairs [B, 2, …] of a denoiser for EDM's levels.

    ε = R⁻¹ (u − Ψ (D(y; σ_eff), 0)) [gDDIM 24]. Where σ_eff is above `most` the answer is that for
    `most` and y scaled with it, and where it is below `least` that for `least`. The clean level is
    that of time 0. Raises UserError for levels of another kind.
    """

    def denoise(u: Tensor, level: Level) -> Estimate:
        if not (level == CLEAN or isinstance(level, LinearLevel)):
            raise UserError("diffusion=cld has pairs (x, v): choose grid=quadratic_time")
        at = diffusion.level(level.time)
        (w_x, w_v), sigma = diffusion.observation(level.time)
        asked = max(min(sigma, most), least)
        y = (w_x * u[:, 0] + w_v * u[:, 1]) * min(asked / sigma, 1.0)
        x = own(y, edm(asked)).x
        return Estimate(level, u, Estimate.from_x(at, u, torch.stack([x, 0 * x], 1)).eps)

    return denoise


def own(model: Model) -> Model:
    """The diffusion that a model was trained for."""
    return model


def cld(
    model: Model, *, beta: float = 4.0, M_inv: float = 4.0, Gamma: float = 1.0, gamma: float = 0.04
) -> Langevin:
    """Critically-damped Langevin diffusion.

    Raises UserError for a model that takes text, and for numbers whose σ_eff ends outside ENDS.
    Stable Diffusion's schedule ends at σ/α = 14.6, where its latents are still visible, while pairs
    start at σ_eff = 248; and guidance is no denoiser of a density.
    """
    if model.takes_text:
        raise UserError(
            "diffusion=cld is for models of images: a text model's noise ends at sigma=14.6, too "
            "little for the pairs (x, v), which start at 248; leave diffusion= out"
        )
    diffusion = CLD(beta, M_inv, Gamma, gamma)
    _check_end(diffusion)
    return Langevin(model, diffusion)


def _check_end(diffusion: CLD) -> None:
    try:
        sigma = diffusion.sigma_eff(diffusion.T)
    except (ValueError, ArithmeticError, RuntimeError):
        sigma = math.inf
    least, most = ENDS
    if not least <= sigma <= most:
        raise UserError(
            f"diffusion=cld: with these numbers the noise at t = 1 is {sigma:.3g} times the image, "
            f"and it must be {least:g} to {most:g} times: choose diffusion.beta near "
            "8/√diffusion.M_inv, and diffusion.gamma near 0.04"
        )
