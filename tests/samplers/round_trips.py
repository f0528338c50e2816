"""A pass in fixed point, there and back."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bdia_exp.samplers.core import Denoiser, Grid
from bdia_exp.samplers.fixedpoint import Log, Pair, bdia_ddim, rational, undo
from tests.laws import MIXTURE

MODEL = MIXTURE.denoiser()
GAMMAS = [Fraction(1), *map(rational, (0.98, 0.92, 0.75, 0.5, "1/3", 0.1))]

every_gamma = pytest.mark.parametrize("gamma", GAMMAS, ids=str)
both_ways = pytest.mark.parametrize("to_noise", [False, True], ids=["to-image", "to-noise"])


def same(a: Pair, b: Pair) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def there_and_back(
    model: Denoiser, start: Tensor, grid: Grid, gamma: Fraction, *, to_noise: bool
) -> tuple[Log, list[Pair]]:
    """Checks the law, and returns the log as it was at the turn, and the pairs."""
    if to_noise:
        grid, gamma = grid[::-1], 1 / gamma
    log = Log()
    pairs = list(bdia_ddim(model, start, grid, gamma=gamma, log=log))
    assert len(pairs) == len(grid) - 1
    assert torch.equal(pairs[0][0], start)
    kept = Log.from_tensors({name: t.clone() for name, t in log.tensors().items()})
    back = list(undo(model, pairs[-1], grid, log))
    assert all(same(a, b) for a, b in zip(back, pairs[::-1], strict=True))
    assert not len(log)
    assert not log.words
    assert not log.carries
    assert not log.buffer.any()
    return kept, pairs
