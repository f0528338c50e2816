"""Classifier-free guidance: an estimate extrapolated from two.

The network answers for one state twice, without the condition and with it; the result
lies on the line through both answers. Both are rows of one batch, in one call, which counts as
one evaluation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[..., Tensor]
"""States [R, …] and conditions, each [R, …] → predictions [R, …]."""


def guided(network: Network, x: Tensor, scale: float, *conditions: Tensor) -> Tensor:
    """f(x, ∅) + scale · (f(x, c) − f(x, ∅)), in one call of 2B rows [CFG 6].

    x [B, …]; conditions [B, 2, …], the empty one first. With conditions [B, 1, …] it is f(x, c),
    and with none f(x). (The paper's w is scale − 1.) f is an estimate of the noise or of the clean
    state: for both, the result is the same level's estimate.
    """
    asked = conditions[0].shape[1] if conditions else 1
    rows = torch.repeat_interleave(x, asked, 0)
    found = network(rows, *(c.flatten(0, 1) for c in conditions)).unflatten(0, (len(x), asked))
    if asked == 1:
        return found[:, 0]
    free, bound = found.unbind(1)
    return free + scale * (bound - free)
