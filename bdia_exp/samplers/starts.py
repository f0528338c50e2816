"""First steps that need no past, for multistep methods of a higher order and for references."""

import math

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Estimate, Level, transfer
from bdia_exp.samplers.schedules import edm, is_edm, is_vp, vp


def improved_euler(model: Denoiser, now: Estimate, t: Level) -> Tensor:
    """A step along the mean of two evaluations, the second one at the end of a trial step."""
    second = model(now.at(t), t)
    return transfer(now.z, (now.eps + second.eps) / 2, now.level, t)


def runge_kutta(model: Denoiser, now: Estimate, t: Level) -> Tensor:
    """Four evaluations, two of them halfway in time, mixed 1 : 2 : 2 : 1 [PNDM PRK]."""
    s, middle = now.level, halfway(now.level, t)
    second = model(now.at(middle), middle)
    third = model(transfer(now.z, second.eps, s, middle), middle)
    fourth = model(transfer(now.z, third.eps, s, t), t)
    mean = (now.eps + 2 * second.eps + 2 * third.eps + fourth.eps) / 6
    return transfer(now.z, mean, s, t)


def halfway(s: Level, t: Level) -> Level:
    """The level in the middle of two times.

    On EDM levels it has the mean σ. On VP levels it has the geometric mean of σ/α, or half of σ/α
    before a clean level; PNDM's code reads ᾱ from a table of whole times.

    Raises UserError for other levels and for pure noise.
    """
    if is_edm(s) and is_edm(t):
        return edm((s.sigma + t.sigma) / 2)
    if not (is_vp(s) and is_vp(t)) or s.is_noise or t.is_noise:
        raise UserError(
            "sampler.start=rk4 needs the levels of a VP model or of EDM, alpha above 0: choose "
            "sampler=ipndm"
        )
    rho = math.sqrt(s.rho * t.rho) or (s.rho + t.rho) / 2
    return vp(rho, (s.time + t.time) / 2)


STARTS = {"heun": (improved_euler, 1), "rk4": (runge_kutta, 3)}
"""The functions of `pndm`'s first steps, and the number of these steps."""
