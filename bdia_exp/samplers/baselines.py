"""The solvers that gDDIM is compared with: Euler-Maruyama, SSCS and Runge-Kutta 4(5).

They need F and G of the diffusion of `samplers.linear`. A step to the clean level is x̂.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Estimate, Grid, Level
from bdia_exp.samplers.gddim import check_lam
from bdia_exp.samplers.linear import CLD, LinearLevel, diffusion_of
from bdia_exp.samplers.mix import Mix
from bdia_exp.samplers.tableaus import TABLEAUS

Noise = Callable[[Tensor], Tensor]
LEAST_STEP = 1e-9
"""The least step in time of `rk45`."""


def score(now: Estimate) -> Tensor:
    """∇ log p = −R⁻ᵀ ε [gDDIM 4]."""
    root = now.level.sigma
    return -now.eps / (root.T if isinstance(root, Mix) else root)


def em(
    model: Denoiser, z: Tensor, grid: Grid, *, lam: float = 1.0, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """Euler-Maruyama: z + dt (F z − ½(1 + λ²) G Gᵀ ∇ log p) + λ √|dt| G N(0, 1) [gDDIM 6].

    Raises UserError for λ outside 0 to MOST_LAM, or levels without a diffusion.
    """
    check_lam(lam)
    for s, t in pairwise(grid):
        diffusion, now = diffusion_of(s), model(z, s)
        if isinstance(t, LinearLevel):
            dt, (_, G) = t.time - s.time, diffusion.drift(s.time)
            z = z + dt * _slope(now, (1 + lam**2) / 2)
            if lam:
                z = z + lam * math.sqrt(-dt) * (G * noise(z))
        else:
            z = now.at(t)
        yield z


def _slope(now: Estimate, share: float = 0.5) -> Tensor:
    """F z − share · G Gᵀ ∇ log p; with ½ it is the probability flow [gDDIM 7]."""
    F, G = diffusion_of(now.level).drift(now.level.time)
    return F * now.z - share * (G * G * score(now))


def sscs(
    model: Denoiser, z: Tensor, grid: Grid, *, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """The symmetric splitting sampler of CLD, at λ = 1 [gDDIM C.4].

    Half a step of the reversed diffusion without data, exact; a kick of v along what the score adds
    to it, with the level of the step's start; half a step again. Raises UserError for other
    levels than those of `CLD`.
    """
    for s, t in pairwise(grid):
        diffusion = diffusion_of(s)
        if not isinstance(diffusion, CLD):
            raise UserError("sampler=sscs splits x from v: choose diffusion=cld")
        if not isinstance(t, LinearLevel):
            yield model(z, s).at(t)
            continue
        h = s.time - t.time
        move, root = diffusion.backwards(h / 2)
        z = move * z + root * noise(z)
        G, M_inv = diffusion.drift(s.time)[1], diffusion.M_inv
        z = z + h * (G * G * (score(model(z, s)) + M_inv * z))
        z = move * z + root * noise(z)
        yield z


def rk45(
    model: Denoiser, z: Tensor, grid: Grid, *, rtol: float = 1e-5, atol: float = 1e-5
) -> Iterator[Tensor]:
    """The probability flow by Dormand and Prince's method, with steps of its own choice [gDDIM 7].

    It stops at every level of the grid; on a grid of one step all steps are its own. So the
    evaluations of a trial run on zeros, 6 a step and 1, are the least number. The error of a step
    is that of the worst image, so an image depends on its batch, within the tolerance. Raises
    UserError for tolerances that are not above 0, or levels without a diffusion.
    """
    if not (rtol > 0 and atol > 0):
        raise UserError(f"sampler.rtol={rtol} and sampler.atol={atol} must be above 0")
    diffusion, now, h = diffusion_of(grid[0]), model(z, grid[0]), -math.inf
    for t in grid[1:]:
        if not isinstance(t, LinearLevel):
            yield now.at(t)
            continue
        while now.level.time > t.time:
            start, left = now.level.time, t.time - now.level.time
            level = t if h <= left else diffusion.level(start + h)
            new, error = _dormand_prince(model, now, level, rtol, atol)
            h = (level.time - start) * min(max(0.9 * max(error, 1e-10) ** -0.2, 0.2), 10.0)
            if not abs(h) > LEAST_STEP:  # also nan
                raise UserError("the steps became too small: give a larger sampler.rtol=")
            now = new if error <= 1 else now
        yield now.z


SHARES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
ROWS = (*TABLEAUS["dopri5"].a[1:], TABLEAUS["dopri5"].b)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Dormand and Prince 5(4): times and rows of the stages after the first, and the weights of the
error. The last stage is at the end of the step, so it is the first of the next one."""


def _dormand_prince(
    model: Denoiser, now: Estimate, t: Level, rtol: float, atol: float
) -> tuple[Estimate, float]:
    """A step to level t: the estimate there, and the largest error of an image (1 is allowed)."""
    start, diffusion = now.level.time, diffusion_of(now.level)
    h, slopes, new = t.time - start, [_slope(now)], now
    for share, row in zip(SHARES, ROWS, strict=True):
        z = now.z + h * _mixed(row, slopes)
        new = model(z, t if share == 1 else diffusion.level(start + share * h))
        slopes.append(_slope(new))
    scale = atol + rtol * torch.maximum(now.z.abs(), new.z.abs())
    error = (h * _mixed(ERROR, slopes) / scale).flatten(1).square().mean(1).sqrt().max()
    return new, float(error)


def _mixed(weights: Sequence[float], slopes: list[Tensor]) -> Tensor:
    return sum(
        (w * k for w, k in zip(weights[1:], slopes[1:], strict=True)), weights[0] * slopes[0]
    )
