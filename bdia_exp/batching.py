"""Batches whose rows do not depend on the batch."""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 16
"""Convolution and matrix kernels of the CPU give a row the same bits in every batch of at least
this many rows, but different bits (by 1e-7) in smaller batches (tests/test_batching.py)."""


def in_full_rows(
    function: Callable[..., Tensor], x: Tensor, *others: Tensor | None, rows: int | None = None
) -> Tensor:
    """function(x, *others) on a batch padded to a multiple of `rows` (ROWS); padding is removed.

    Arguments that are None or have another number of rows than x are passed unchanged.
    """
    count = x.shape[0]
    missing = -count % (rows or ROWS)
    if not missing:
        return function(x, *others)

    def pad(y: Tensor | None) -> Tensor | None:
        if y is None or y.shape[:1] != x.shape[:1]:
            return y
        return torch.cat([y, y[-1:].expand(missing, *y.shape[1:])])

    return function(*(pad(y) for y in (x, *others)))[:count]
