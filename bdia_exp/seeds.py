"""Seeds: one generator per image, so image k depends only on seed k."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from bdia_exp.errors import UserError


def parse(spec: str | int) -> list[int]:
    """Seeds from a text such as `0-49999,70000`, in the given order.

    Raises UserError if the text has another form, a range runs backwards or a seed is repeated.
    """
    seeds: list[int] = []
    for part in str(spec).split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise UserError(
                f"seeds={spec!r}: {part!r} is neither a number nor a range such as 0-99"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"seeds={spec!r}: the range {part!r} runs backwards")
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={spec!r}: a seed is given twice; every image needs its own")
    return seeds


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
