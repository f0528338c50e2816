"""Inversion: from a clean state to noise, and back again.

There are no inverse samplers: BDIA's inverse is the same loop on grid[::-1] with 1/γ, and coupled
states are inverted by the same lines in reverse order. An `Inversion` only defines the tensors that
are kept between the two directions: one state for DDIM, two for the exact methods.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from bdia_exp.errors import UserError, nearest
from bdia_exp.samplers import fixedpoint
from bdia_exp.samplers.core import Denoiser, Estimate, Grid, Rule, Sampler, transfer
from bdia_exp.samplers.coupling import CBDIA, EDICT, Coupling
from bdia_exp.samplers.loops import cbdia, coupled, edict, multistep, rex
from bdia_exp.samplers.rex import Rex
from bdia_exp.samplers.rules import ddim, leapfrog
from bdia_exp.samplers.weights import OBELM, Gamma, each_gamma

Kept = Mapping[str, Tensor]
"""The tensors that one direction keeps for the other; "z" is the newest state, [B, …]."""


class Inversion(Protocol):
    """`grid` runs from noise to data in both directions; its last level is the clean state's.

    Both directions start from kept tensors; `encode` also from a clean state alone, [B, …].
    """

    @property
    def keeps(self) -> tuple[str, ...]:
        """The names of the states that are kept, all of one shape."""
        ...

    def growth(self, grid: Grid) -> float:
        """The factor by which `encode` enlarges an error, if the network does not change it.

        For BDIA Π 1/|γ_i| over the steps that divide by γ_i, all but the first.
        """
        ...

    def encode(self, model: Denoiser, x: Tensor | Kept, grid: Grid) -> Iterator[Kept]:
        """From data to noise: what is kept after each step, len(grid) − 1 of them."""
        ...

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        """From noise to data: what is kept after each step.

        same=False: the network, or its condition, differs from that of `encode`.
        """
        ...


@dataclass(frozen=True)
class DDIMInversion:
    """DDIM's inversion, an approximation: one state is kept [BDIA 9-10].

    The network is evaluated at the current state. With time="target" it is given the level of the
    next state, as in [BDIA 10]; with time="own" the state's own level [BDIA 23-24].
    """

    time: str = "target"
    keeps = ("z",)

    def growth(self, grid: Grid) -> float:
        return 1.0

    def encode(self, model: Denoiser, x: Tensor | Kept, grid: Grid) -> Iterator[Kept]:
        x = _kept(x)["z"]
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
    less than `encode`, because it starts from two states. `leapfrog` inverts in the same way, with
    γ = 0. Raises UserError if a γ_i of another rule is 0.
    """

    gamma: Gamma = 1.0
    rule: Rule = ddim
    keeps = ("z", "past")

    def growth(self, grid: Grid) -> float:
        return 1.0 if self.rule is leapfrog else math.prod(map(abs, self._back(grid)))

    def encode(self, model: Denoiser, x: Tensor | Kept, grid: Grid) -> Iterator[Kept]:
        back: Gamma = 0.0 if self.rule is leapfrog else [*self._back(grid)]
        return self._way(model, _kept(x), grid[::-1], back)

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        return self._way(model, kept, grid, self.gamma)

    def _back(self, grid: Grid) -> list[float]:
        """1/γ_i, in the order of the steps from data to noise."""
        return [1 / gamma for gamma in reversed(nonzero(self.gamma, grid))]

    def _way(self, model: Denoiser, kept: Kept, grid: Grid, gamma: Gamma) -> Iterator[Kept]:
        """Along the grid. If two states were kept, it starts from both, in exchanged roles."""
        past, trail = kept["z"], []
        z = past
        if "past" in kept:
            trail = [Estimate(grid[0], past, torch.zeros_like(past))]  # its noise is not used
            z, grid = kept["past"], grid[1:]
            yield {"z": z, "past": past}
        for state in multistep(model, z, grid, rule=self.rule, gamma=gamma, trail=trail):
            z, past = state, z
            yield {"z": z, "past": past}


@dataclass(frozen=True)
class CoupledInversion:
    """The inversion of two coupled states, exact up to rounding: both are kept.

    A coupling that draws noise draws it again from the images' seeds, which are kept too: "seeds",
    int64 [B]; image k of a batch has the seed k if none are given.
    """

    coupling: Coupling
    keeps = ("z", "y")

    def growth(self, grid: Grid) -> float:
        return math.prod([self.coupling.amplification] * (len(grid) - 1))

    def encode(self, model: Denoiser, x: Tensor | Kept, grid: Grid) -> Iterator[Kept]:
        kept = _kept(x)
        return self._way(model, {"y": kept["z"], **kept}, grid, undo=True)

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        return self._way(model, kept, grid, undo=False)

    def _way(self, model: Denoiser, kept: Kept, grid: Grid, *, undo: bool) -> Iterator[Kept]:
        coupling, seeds = self.coupling, {}
        if isinstance(coupling, Rex) and coupling.sde:
            seeds = {"seeds": kept.get("seeds", torch.arange(len(kept["z"])))}
            coupling = replace(coupling, seeds=tuple(seeds["seeds"].tolist()))
        for z, y in coupled(model, (kept["z"], kept["y"]), grid, coupling, undo=undo):
            yield {"z": z, "y": y, **seeds}


@dataclass(frozen=True)
class FixedPointInversion:
    """BDIA's inversion, exact in every bit: fixed-point states and a log (docs/fixedpoint.md).

    With the network of `encode`, `decode` undoes its log; with another network it uses the same
    formula and a new log. Raises UserError for a γ that `fixedpoint.rational` refuses.
    """

    gamma: Gamma = 1.0
    keeps = ("z", "z.fixed", "past.fixed")

    def __post_init__(self):
        if isinstance(self.gamma, (int, float)):
            fixedpoint.rational(self.gamma)

    def growth(self, grid: Grid) -> float:
        return math.prod(float(1 / gamma) for gamma in self._fractions(grid))

    def encode(self, model: Denoiser, x: Tensor | Kept, grid: Grid) -> Iterator[Kept]:
        back = [1 / gamma for gamma in reversed(self._fractions(grid))]
        return self._way(model, _kept(x), grid[::-1], back)

    def decode(
        self, model: Denoiser, kept: Kept, grid: Grid, *, same: bool = True
    ) -> Iterator[Kept]:
        if not same:
            yield from self._way(model, kept, grid, self._fractions(grid))
            return
        log = fixedpoint.Log.from_tensors(kept)
        pair = kept["past.fixed"], kept["z.fixed"]
        for newer, older in fixedpoint.undo(model, pair, grid[::-1], log):
            yield _as_kept(newer, older, log)

    def _fractions(self, grid: Grid) -> list[Fraction]:
        """γ_i of every step but the first."""
        return [fixedpoint.rational(gamma) for gamma in nonzero(self.gamma, grid)]

    def _way(
        self, model: Denoiser, kept: Kept, grid: Grid, gamma: list[Fraction]
    ) -> Iterator[Kept]:
        """Along the grid with a new log."""
        log = fixedpoint.Log()
        start: Tensor | fixedpoint.Pair = fixedpoint.quantise(kept["z"])
        if "z.fixed" in kept:
            start = kept["z.fixed"], kept["past.fixed"]
        for older, newer in fixedpoint.bdia_ddim(model, start, grid, gamma=gamma, log=log):
            yield _as_kept(newer, older, log)


def nonzero(gamma: Gamma, grid: Grid) -> list[float]:
    """γ of every step but the first. Raises UserError, naming the step, if one is 0."""
    found = each_gamma(gamma, grid)
    for place, each in enumerate(found, 2):
        if each == 0:
            raise UserError(
                f"sampler.gamma is 0 at step {place} of {len(grid) - 1}, which cannot be undone: "
                "choose numbers that are not 0, and a grid without repeated levels"
            )
    return found


def _kept(x: Tensor | Kept) -> Kept:
    return {"z": x} if isinstance(x, Tensor) else x


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
"""The ways to store a state, and the dtype of the state that is passed in."""


def of(sampler: Sampler, *, state: str = "float64", time: str = "target") -> Inversion:
    """The inversion of a sampler. `time` is that of `DDIMInversion`.

    Raises UserError, naming samplers with an inversion, if this one has none.
    """
    if state not in STATES:
        raise UserError(f"state={state!r} is unknown{nearest(state, STATES)}")
    if time not in ("target", "own"):
        raise UserError(f"ddim_time={time!r} is unknown; known: own, target")
    function: Callable = sampler.func if isinstance(sampler, partial) else sampler
    given: dict[str, Any] = dict(sampler.keywords) if isinstance(sampler, partial) else {}
    found: Inversion | None = None
    other = given.get("final") or given.get("columns") or given.get("refine") == "hat"
    if function is multistep and not other:
        rule, gamma = given.get("rule", ddim), given.get("gamma", 0.0)
        if rule is ddim:
            found = BDIAInversion(gamma) if gamma else DDIMInversion(time)
        elif rule is leapfrog and not gamma:
            found = BDIAInversion(0.0, leapfrog)
    elif function is edict:
        found = CoupledInversion(EDICT(**given))
    elif function is cbdia:
        found = CoupledInversion(CBDIA(**given))
    elif function is rex:
        found = CoupledInversion(Rex(**given))
    if found is None:
        raise UserError(
            "this sampler has no inverse: choose sampler=bdia_ddim, leapfrog, edict, cbdia or rex, "
            "which are exact, or ddim, which is not"
        )
    if state == "fixed":
        if not (isinstance(found, BDIAInversion) and found.gamma):
            raise UserError("state=fixed is for sampler=bdia_ddim with sampler.gamma above 0")
        if found.gamma == OBELM:
            raise UserError(
                "state=fixed needs short fractions, and the numbers of sampler.gamma=obelm are "
                "not: give a number such as 0.95, or auto"
            )
        return FixedPointInversion(found.gamma)
    return found
