"""Batches whose rows do not depend on the batch."""

from collections.abc import Callable, Iterable
from itertools import repeat

import torch
from torch import Tensor

ROWS = 16
"""Convolution and matrix kernels of the CPU give a row the same bits in every batch of at least
this many rows, but different bits (by 1e-7) in smaller batches (tests/test_batching.py)."""
MOST = 64
"""Rows of one call on a CPU. Calls with more rows are not faster (bench/layout.py). In large
networks they are slower than calls of ROWS, because the results of a layer do not fit into the
cache."""


def in_full_rows(
    function: Callable[..., Tensor],
    x: Tensor,
    *others: Tensor | None,
    rows: int | None = None,
    most: int | None = None,
) -> Tensor:
    """function(x, *others) on a batch padded to a multiple of `rows` (ROWS); padding is removed.

    On a CPU it is called with at most `most` (MOST) rows at a time, elsewhere once. Arguments that
    are None or have another number of rows than x are passed unchanged.
    """
    count, rows = len(x), rows or ROWS
    missing = -count % rows
    size = max(rows, most or MOST) if x.device.type == "cpu" else count + missing

    def calls(y: Tensor | None) -> Iterable[Tensor | None]:
        if y is None or y.shape[:1] != x.shape[:1]:
            return repeat(y)
        if missing:
            y = torch.cat([y, y[-1:].expand(missing, *y.shape[1:])])
        return y.split(size)

    found = [function(*inputs) for inputs in zip(*map(calls, (x, *others)), strict=False)]
    return torch.cat(found)[:count] if len(found) > 1 else found[0][:count]
