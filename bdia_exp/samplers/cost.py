"""The network evaluations (NFE) that a sampler needs, and the grid for a given NFE."""

import math
from collections.abc import Callable

import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Counted, Estimate, Grid, Sampler

MOST = 10_000
"""The largest number of steps or evaluations that a trial run is made for."""


def evaluations(sampler: Sampler, grid: Grid) -> int:
    """The network evaluations that `sampler` spends on `grid`.

    Counted in a trial run on a pair of numbers, on which scalars and matrices can act; no sampler
    has to declare its cost.
    Raises UserError for arguments that the sampler refuses.
    """
    network = Counted(lambda z, level: Estimate(level, z, torch.zeros_like(z), z))
    for _ in sampler(network, torch.zeros(1, 2, 1, 1, dtype=torch.float64), grid):
        pass
    return network.nfe


def grid_for(sampler: Sampler, grid: Callable[[int], Grid], nfe: int) -> Grid:
    """The grid on which `sampler` spends exactly `nfe` evaluations.

    Raises UserError naming the nearest possible values when there is none, and what the sampler
    raises on these levels.
    """
    steps, spent = affordable(sampler, grid, nfe)
    if spent == nfe:
        return grid(steps)
    try:
        longer = grid(steps + 1)
    except UserError as error:
        raise UserError(f"nfe={nfe} is not possible: choose {spent} or less ({error})") from None
    above = evaluations(sampler, longer)  # a sampler may refuse levels in its second step
    raise UserError(f"nfe={nfe} is not possible with this sampler: choose {spent} or {above}")


def affordable(sampler: Sampler, grid: Callable[[int], Grid], nfe: int) -> tuple[int, int]:
    """The largest number of steps that cost at most `nfe` evaluations, and what they cost.

    It looks ahead by what one step more costs: two or three trials, if all steps cost the same.
    Raises UserError if one step costs more than `nfe`, and if `nfe` is more than MOST.
    """
    if nfe > MOST:
        raise UserError(f"nfe={nfe} must be at most {MOST}")
    steps, spent = 1, evaluations(sampler, grid(1))
    if spent > nfe:
        raise UserError(f"nfe={nfe} is not possible with this sampler: choose {spent} or more")

    def cost(steps: int) -> float:
        try:
            return evaluations(sampler, grid(steps))
        except UserError:  # a table of times has no grid of so many steps
            return math.inf

    while (left := nfe - spent) and (each := cost(steps + 1) - spent) <= left:
        ahead = int(left // max(each, 1))
        while (found := cost(steps + ahead)) > nfe:
            ahead //= 2
        steps, spent = steps + ahead, int(found)
    return steps, spent
