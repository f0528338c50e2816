"""Classifier-free guidance: an estimate extrapolated from two.

The network estimates the noise of one state twice, without the condition and with it; the result
lies on the line through both estimates. Both are rows of one batch, in one call, which counts as
one evaluation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[..., Tensor]
"""States [R, …] and conditions, each [R, …] → predictions [R, …]."""


def guided(network: Network, x: Tensor, scale: float, *conditions: Tensor) -> Tensor:
    """f(x, ∅) + scale · (f(x, c) − f(x, ∅)), in one call of 2B rows [CFG 6].

    x [B, …]; conditions [B, 2, …], the empty one first. With conditions [B, 1, …] it is f(x, c).
    (The paper's w is scale − 1.)
    """
    asked = conditions[0].shape[1]
    rows = torch.repeat_interleave(x, asked, 0)
    found = network(rows, *(c.flatten(0, 1) for c in conditions)).unflatten(0, (len(x), asked))
    if asked == 1:
        return found[:, 0]
    free, bound = found.unbind(1)
    return free + scale * (bound - free)
