"""Batches whose rows do not depend on the batch."""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 16
"""Convolution and matrix kernels of the CPU give the same bits for a row in every batch of at least
this many rows, and other bits (1e-7) in smaller ones (tests/test_batching.py)."""


def in_full_rows(function: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """function(x, *others), evaluated on a batch padded to a multiple of ROWS, and cut back.

    Arguments that are None or have a single row are passed as they are.
    """
    count = x.shape[0]
    missing = -count % ROWS
    if not missing:
        return function(x, *others)

    def pad(y: Tensor | None) -> Tensor | None:
        if y is None or y.shape[0] != count:
            return y
        return torch.cat([y, y[-1:].expand(missing, *y.shape[1:])])

    return function(*(pad(y) for y in (x, *others)))[:count]
