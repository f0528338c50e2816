"""Seeds: one generator per image, so image k depends only on seed k."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import overload

import torch
from torch import Tensor

from bdia_exp.errors import UserError

MOST = 1 << 32
"""Seeds are below this number: generators take them modulo 2³², as EDM's do."""


class Seeds(Sequence[int]):
    """Seeds as ranges, in their order: their number does not need memory."""

    def __init__(self, ranges: Sequence[range]):
        self.ranges = tuple(ranges)
        self._starts = [0, *accumulate(map(len, self.ranges))]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        places = range(len(self))[place]
        return [*map(self._at, places)] if isinstance(places, range) else self._at(places)

    def _at(self, place: int) -> int:
        which = bisect_right(self._starts, place) - 1
        return self.ranges[which][place - self._starts[which]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and [*self] == [*other]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)


def parse(spec: str | int) -> Seeds:
    """Seeds from a text such as `0-49999,70000`, in the given order.

    Raises UserError if the text has another form, a range runs backwards, a seed is repeated or is
    not below 2³².
    """
    ranges: list[range] = []
    for part in str(spec).split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        if not match:
            raise UserError(
                f"seeds={spec!r}: {part!r} is neither a number nor a range such as 0-99"
            )
        if max(len(number.lstrip("0")) for number in match.groups("0")) > len(str(MOST)):
            raise UserError(_TOO_LARGE)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"seeds={spec!r}: the range {part!r} runs backwards")
        if last >= MOST:
            raise UserError(_TOO_LARGE)
        ranges.append(range(first, last + 1))
    in_order = sorted(ranges, key=lambda one: one.start)
    if any(later.start < one.stop for one, later in pairwise(in_order)):
        raise UserError(f"seeds={spec!r}: a seed is given twice; every image needs its own")
    return Seeds(ranges)


_TOO_LARGE = f"seeds= must be 0 to {MOST - 1}: larger ones repeat the noise of these"


class Generators:
    """One generator for each seed of a batch; draws are stacked in the batch's order.

    The order of the draws decides the image: first the noise, then the label, then the noise of a
    stochastic sampler, as in EDM's generator. CPU generators (the default) give the same image on
    every device; `device="cuda"` gives the numbers of EDM's own runs.
    """

    def __init__(self, seeds: Sequence[int], device: str = "cpu"):
        self.rngs = [torch.Generator(device).manual_seed(seed % (1 << 32)) for seed in seeds]

    def randn(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        draws = [torch.randn(*shape, generator=rng, device=rng.device) for rng in self.rngs]
        return torch.stack(draws)

    def randn_like(self, z: Tensor) -> Tensor:
        """Standard normal numbers with the shape [B, …], dtype and device of z."""
        draws = [
            torch.randn(*row.shape, generator=rng, device=rng.device, dtype=z.dtype)
            for rng, row in zip(self.rngs, z, strict=True)
        ]
        return torch.stack(draws).to(z.device)

    def randint(self, high: int) -> Tensor:
        """Integers below `high`, int64 [B]."""
        draws = [torch.randint(high, (), generator=rng, device=rng.device) for rng in self.rngs]
        return torch.stack(draws)
