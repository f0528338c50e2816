"""Inversion: from a clean state to noise, and back again.

There are no inverse samplers here: BDIA's inverse is the same loop on grid[::-1] with 1/γ, that of
two coupled states the same lines in reverse order. An `Inversion` only knows what has to be kept
between the two ways, a dict of tensors: one state for DDIM, two for the methods that are exact.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from bdia_exp import fixedpoint
from bdia_exp.core import Denoiser, Estimate, Grid, Rule, Sampler, transfer
from bdia_exp.coupling import CBDIA, EDICT, Coupling
from bdia_exp.errors import UserError, nearest
from bdia_exp.rules import ddim, leapfrog
from bdia_exp.solvers import cbdia, coupled, edict, multistep

Kept = Mapping[str, Tensor]
"""What a way leaves for the way back; its "z" is the newest state, [B, …]."""


class Inversion(Protocol):
    """`grid` runs from noise to data for both ways; its last level is that of the clean state."""

    @property
    def amplification(self) -> float:
        """By how much a step of `encode` enlarges an error: 1/γ for BDIA."""
        ...

    def encode(self, model: Denoiser, x: Tensor, grid: Grid) -> Iterator[Kept]:
        """From a clean state to noise: what is kept after each step, len(grid) − 1 of them."""
        ...

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        """From what the last step of `encode` kept to a clean state, as many steps.

        same=False says that the network, or its condition, is another one than that of `encode`.
        """
        ...


@dataclass(frozen=True)
class DDIMInversion:
    """DDIM's inversion, an approximation: one state is kept [BDIA 9-10].

    The network is asked about the state at hand and, with time="target", about the level to be
    reached, as [BDIA 10] has it; with time="own" about the state's own level [BDIA 23-24].
    """

    time: str = "target"

    @property
    def amplification(self) -> float:
        return 1.0

    def encode(self, model: Denoiser, x: Tensor, grid: Grid) -> Iterator[Kept]:
        for s, t in pairwise(grid[::-1]):
            x = transfer(x, model(x, t if self.time == "target" else s).eps, s, t)
            yield {"z": x}

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        for z in multistep(model, kept["z"], grid):
            yield {"z": z}


@dataclass(frozen=True)
class BDIAInversion:
    """BDIA's inversion, exact up to rounding: the last two states are kept [BDIA 33].

    The first step from the clean state has no past and is DDIM's. `decode` needs one evaluation
    less than `encode`, for it starts from two states. The rule `leapfrog` inverts in the same way.
    """

    gamma: float = 1.0
    rule: Rule = ddim

    @property
    def amplification(self) -> float:
        return 1 / self.gamma if self.gamma else 1.0

    def encode(self, model: Denoiser, x: Tensor, grid: Grid) -> Iterator[Kept]:
        gamma, past = 1 / self.gamma if self.gamma else 0.0, x
        for z in multistep(model, x, grid[::-1], rule=self.rule, gamma=gamma):
            yield {"z": z, "past": past}
            past = z

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        past, z = kept["z"], kept["past"]
        yield {"z": z, "past": past}
        trail = [Estimate(grid[0], past, torch.zeros_like(past))]  # its noise is not used
        steps = multistep(model, z, grid[1:], rule=self.rule, gamma=self.gamma, trail=trail)
        for state in steps:
            z, past = state, z
            yield {"z": z, "past": past}


@dataclass(frozen=True)
class CoupledInversion:
    """The inversion of two coupled states, exact up to rounding: both are kept."""

    coupling: Coupling

    @property
    def amplification(self) -> float:
        return self.coupling.amplification

    def encode(self, model: Denoiser, x: Tensor, grid: Grid) -> Iterator[Kept]:
        for z, y in coupled(model, (x, x), grid, self.coupling, undo=True):
            yield {"z": z, "y": y}

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        for z, y in coupled(model, (kept["z"], kept["y"]), grid, self.coupling):
            yield {"z": z, "y": y}


@dataclass(frozen=True)
class FixedPointInversion:
    """BDIA's inversion with every bit: states in fixed point, and a log (docs/fixedpoint.md).

    With the network of `encode`, `decode` undoes its log; with another it goes by the same formula
    and a log of its own.
    """

    gamma: float = 1.0

    @property
    def amplification(self) -> float:
        return 1 / self.gamma

    def encode(self, model: Denoiser, x: Tensor, grid: Grid) -> Iterator[Kept]:
        gamma, log = fixedpoint.rational(self.gamma), fixedpoint.Log()
        start = fixedpoint.quantise(x)
        steps = fixedpoint.bdia_ddim(model, start, grid[::-1], gamma=1 / gamma, log=log)
        for older, newer in steps:
            yield _as_kept(newer, older, log)

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        pair = kept["past.fixed"], kept["z.fixed"]
        if not same:
            gamma, log = fixedpoint.rational(self.gamma), fixedpoint.Log()
            steps = fixedpoint.bdia_ddim(model, pair[::-1], grid, gamma=gamma, log=log)
        else:
            log = fixedpoint.Log.from_tensors(kept)
            steps = ((b, a) for a, b in fixedpoint.undo(model, pair, grid[::-1], log))
        for older, newer in steps:
            yield _as_kept(newer, older, log)


def _as_kept(newer: Tensor, older: Tensor, log: fixedpoint.Log) -> Kept:
    return {
        "z": fixedpoint.value(newer, log.fraction_bits),
        "z.fixed": newer,
        "past.fixed": older,
        **log.tensors(),
    }


STATES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "fixed": torch.float64,
}
"""What a state may be held in, and the dtype in which it is handed in."""


def of(sampler: Sampler, *, state: str = "float64", time: str = "target") -> Inversion:
    """The inversion of a sampler. `time` is that of `DDIMInversion`.

    Raises UserError for a sampler that has none, naming those that have.
    """
    if state not in STATES:
        raise UserError(f"state={state!r} is unknown{nearest(state, STATES)}")
    if time not in ("target", "own"):
        raise UserError(f"ddim_time={time!r} is unknown; known: own, target")
    function: Callable = sampler.func if isinstance(sampler, partial) else sampler
    given: dict[str, Any] = dict(sampler.keywords) if isinstance(sampler, partial) else {}
    found: Inversion | None = None
    if function is multistep and not given.get("final"):
        rule, gamma = given.get("rule", ddim), given.get("gamma", 0.0)
        if rule is ddim:
            found = BDIAInversion(gamma) if gamma else DDIMInversion(time)
        elif rule is leapfrog and not gamma:
            found = BDIAInversion(0.0, leapfrog)
    elif function is edict:
        found = CoupledInversion(EDICT(**given))
    elif function is cbdia:
        found = CoupledInversion(CBDIA(**given))
    if found is None:
        raise UserError(
            "this sampler has no inverse: choose sampler=bdia_ddim, leapfrog, edict or cbdia, "
            "which are exact, or ddim, which is not"
        )
    if state == "fixed":
        if not (isinstance(found, BDIAInversion) and found.gamma):
            raise UserError("state=fixed is for sampler=bdia_ddim with sampler.gamma above 0")
        return FixedPointInversion(found.gamma)
    return found
