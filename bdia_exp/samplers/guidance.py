"""Classifier-free guidance: a denoiser made of two.

The network is asked twice about one state, without a condition and with it, and its second answer
is followed beyond the first. Both questions go in one call, as two rows of its batch: that counts
as one evaluation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[..., Tensor]
"""States [R, …] and conditions, each [R, …], to what is predicted, [R, …]."""


def guided(network: Network, x: Tensor, scale: float, *conditions: Tensor) -> Tensor:
    """f(x, ∅) + scale · (f(x, c) − f(x, ∅)), in one call of 2B rows [CFG 6].

    x [B, …]; every condition [B, 2, …], empty and full. With conditions [B, 1, …] it is f(x, c).
    (The paper's w is scale − 1.)
    """
    asked = conditions[0].shape[1]
    rows = torch.repeat_interleave(x, asked, 0)
    found = network(rows, *(c.flatten(0, 1) for c in conditions)).unflatten(0, (len(x), asked))
    if asked == 1:
        return found[:, 0]
    free, bound = found.unbind(1)
    return free + scale * (bound - free)
