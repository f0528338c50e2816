"""The network evaluations (NFE) that a sampler needs, and the grid for a given NFE."""

from bisect import bisect_left
from collections.abc import Callable

import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Counted, Estimate, Grid, Sampler


def evaluations(sampler: Sampler, grid: Grid) -> int:
    """The network evaluations that `sampler` spends on `grid`.

    Counted in a trial run on a state of one number; no sampler has to declare its cost.
    Raises UserError for arguments that the sampler refuses.
    """
    network = Counted(lambda z, level: Estimate(level, z, torch.zeros_like(z), z))
    for _ in sampler(network, torch.zeros(1, dtype=torch.float64), grid):
        pass
    return network.nfe


def grid_for(sampler: Sampler, grid: Callable[[int], Grid], nfe: int) -> Grid:
    """The grid on which `sampler` spends exactly `nfe` evaluations.

    Raises UserError naming the nearest possible values when there is none.
    """

    def cost(steps: int) -> int:
        return evaluations(sampler, grid(steps))

    steps = 1 + bisect_left(range(1, max(nfe, 1)), nfe, key=cost)  # every step costs at least 1
    above = cost(steps)
    if above == nfe:
        return grid(steps)
    possible = f"{cost(steps - 1)} or {above}" if steps > 1 else f"{above} or more"
    raise UserError(f"nfe={nfe} is not possible with this sampler: choose {possible}")
