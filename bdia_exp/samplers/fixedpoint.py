"""BDIA-DDIM in fixed point: undoing a pass returns its start with every bit.

The inverse of a BDIA step is exact on paper. In floating point its rounding errors grow like
(1/γ)^(N−1). Here a state is an int64 tensor of whole multiples of 2^-fraction_bits, γ is a fraction
a/b, and a `Log` stores the digits that a multiplication by γ loses. A step is then a bijection of
(pair of states, log), and `undo` is its inverse. Reasons and requirements: docs/fixedpoint.md.

    gamma, log = rational(0.92), Log()
    *_, pair = bdia_ddim(model, quantise(x), grid[::-1], gamma=1 / gamma, log=log)  # image to noise
    *_, (state, _) = undo(model, pair, grid[::-1], log)  # and back: equal to quantise(x)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Denoiser, Grid, Level

FRACTION_BITS = 32
"""The default for a state: a resolution of 2e-10, and a range of ±2^19."""

HALF = 2**51
"""States lie in [-HALF, HALF): exact in float64 (2^53), and 2 HALF · TERMS fits in int64."""

TERMS = 2**10
"""The largest numerator or denominator of γ."""

WORD = 2**63 - 1
"""The largest bound of a log's buffer: both fit in int64."""

Pair = tuple[Tensor, Tensor]
"""Two neighbouring states, int64, in the order in which they were computed."""


def rational(gamma: float | str | Fraction) -> Fraction:
    """γ as the fraction of its decimal digits: 0.92 is 23/25. "1/3" is accepted too, and a float
    that is the nearest one to a short fraction.

    Raises UserError unless γ > 0 and its numerator and denominator are at most TERMS.
    """
    try:
        exact = Fraction(str(gamma))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"gamma={gamma} is no number: choose one like 0.92 or 23/25") from None
    if not 0 < exact <= TERMS:
        raise UserError(
            f"gamma={gamma} cannot be undone in fixed point: choose one above 0, at most {TERMS}"
        )
    if isinstance(gamma, float):
        near = exact.limit_denominator(TERMS)
        exact = near if float(near) == gamma else exact
    if max(exact.as_integer_ratio()) > TERMS:
        short = max(round(float(exact), 3), 0.001)
        raise UserError(
            f"gamma={gamma} is a fraction with a denominator over {TERMS}: choose one of at most "
            f"three decimals, such as {short}"
        )
    return exact


def quantise(x: Tensor, fraction_bits: int = FRACTION_BITS) -> Tensor:
    """Numbers in units of 2^-fraction_bits, rounded: int64.

    Defined for all numbers, so no network output can break the inverse: numbers out of range
    become ±(HALF − 1), and nan becomes HALF − 1.
    """
    edge = HALF - 1
    units = (x.double() * 2.0**fraction_bits).round()
    return units.nan_to_num(nan=edge).clamp(-edge, edge).long()


def value(state: Tensor, fraction_bits: int = FRACTION_BITS) -> Tensor:
    """A state as float64, exactly.

    Its strides are always those of a new tensor: a convolution may round differently in another
    memory layout, and saving and loading a state changes its layout.
    """
    return (state.flatten().double() * 2.0**-fraction_bits).view(state.shape)


def rescale(u: Tensor, buffer: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """(u, buffer) → (nearly u · a/b, buffer'), a bijection; exchanging a and b gives the inverse.

    int64 tensors of one shape; buffer ≥ 0. The last digit of u in base b moves to the buffer, and
    a digit in base a is taken from it (Maclaurin, Duvenaud and Adams, arXiv 1502.03492).
    """
    buffer = buffer * b + u % b
    return u // b * a + buffer % a, buffer // a


class Step(NamedTuple):
    """A multiplication by a/b, the buffer's bound before it, and the sum of the state it replaced.

    `undo` compares the sum, modulo 2^64, to check that it found the same state.
    """

    a: int
    b: int
    bound: int
    sum: int

    @property
    def fills(self) -> bool:
        """Whether a digit in base b could overflow the buffer, which is then moved to `words`."""
        return self.bound * self.b > WORD


class Log:
    """The side information of a pass: `bdia_ddim` writes it, `undo` reads it, last in first out.

    Every element of a state has a stack of digits. Its top is `buffer`, int64 in [0, bound); the
    rest are `words`, on the CPU. Every step has its `Step` and its carry: the number of ranges by
    which the state was wrapped, int16 on the CPU, or None if it was not.

    `clipped` counts the numbers out of range when the network's estimates were quantised,
    `wrapped` those of the states. If either is above 0 the inverse is still exact, but the pass
    followed another formula than [BDIA 27].
    """

    def __init__(self, fraction_bits: int = FRACTION_BITS):
        self.fraction_bits = fraction_bits
        self.clipped = 0
        self.buffer, self.bound = torch.zeros((), dtype=torch.int64), 1
        self.words: list[Tensor] = []
        self.steps: list[Step] = []
        self.carries: list[Tensor | None] = []

    def __len__(self) -> int:
        """The steps that can be undone."""
        return len(self.steps)

    @property
    def wrapped(self) -> int:
        """How many numbers, in all steps, left the range of a state."""
        return sum(int((carry != 0).sum()) for carry in self.carries if carry is not None)

    def bits(self) -> list[float]:
        """The bits per element that each step added: log₂ of the digits' growth, 16 for a carry.

        Below 0 for a step that takes digits from the log, as steps from image to noise can do.
        """
        after = [*(step.bound for step in self.steps), self.bound][1:]
        return [
            math.log2(bound)
            - (0 if step.fills else math.log2(step.bound))
            + (0 if carry is None else 16)
            for step, bound, carry in zip(self.steps, after, self.carries, strict=True)
        ]

    def push(self, older: Tensor, back: Tensor, on: Tensor, factor: Fraction) -> Tensor:
        """The next state, factor · (older − back) + on, wrapped into [-HALF, HALF)."""
        step = Step(*factor.as_integer_ratio(), self.bound, int(older.sum()))
        if step.fills:
            self.words.append(self.buffer.cpu())
            self.buffer, self.bound = torch.zeros_like(self.buffer), 1
        buffer = self.buffer.to(older.device)
        u, self.buffer = rescale(older - back, buffer, step.a, step.b)
        self.bound = -(-self.bound * step.b // step.a)
        carry = (u + on + HALF) // (2 * HALF)
        self.steps.append(step)
        self.carries.append(carry.short().cpu() if carry.any() else None)
        return u + on - carry * (2 * HALF)

    def pop(self, newer: Tensor, back: Tensor, on: Tensor) -> Tensor:
        """The inverse of the last `push`: its older state.

        Raises UserError if it is not the state that was pushed.
        """
        step, carry = self.steps.pop(), self.carries.pop()
        if carry is not None:
            newer = newer + carry.to(newer.device).long() * (2 * HALF)
        buffer = self.buffer.to(newer.device)
        u, self.buffer = rescale(newer - on, buffer, step.b, step.a)
        self.bound = step.bound
        if step.fills:
            self.buffer = self.words.pop()
        if int((u + back).sum()) != step.sum:
            raise UserError(
                "this pass is not the one that wrote the log: give undo the last pair, the grid "
                "and the log of one pass, with its model, labels, batch and kind of device"
            )
        return u + back

    def tensors(self) -> dict[str, Tensor]:
        """The log as tensors on the CPU, for a file; the buffer in its narrowest type."""
        narrow = next(t for t in _INTEGERS if self.bound - 1 <= torch.iinfo(t).max)
        buffer = self.buffer if self.bound > 1 else torch.zeros(())  # with a bound of 1 it is 0
        return {
            "log": torch.tensor([self.fraction_bits, self.clipped, self.bound]),
            "steps": torch.tensor(self.steps, dtype=torch.int64).reshape(-1, 4),
            "buffer": buffer.to(narrow).cpu().contiguous(),
            **{f"word.{i}": word.contiguous() for i, word in enumerate(self.words)},
            **{f"carry.{i}": c.contiguous() for i, c in enumerate(self.carries) if c is not None},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Log":
        """The inverse of `tensors`. Raises UserError if a tensor is missing."""
        log = cls()
        try:
            log.fraction_bits, log.clipped, log.bound = tensors["log"].tolist()
            log.buffer = tensors["buffer"].long()
            log.steps = [Step(*row) for row in tensors["steps"].tolist()]
            log.words = [tensors[f"word.{i}"] for i in range(sum(step.fills for step in log.steps))]
        except KeyError as missing:
            raise UserError(
                f"this log is not complete, {missing} is missing: give what Log.tensors() returned"
            ) from None
        log.carries = [tensors.get(f"carry.{i}") for i in range(len(log))]
        return log


_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def bdia_ddim(
    model: Denoiser,
    start: Tensor | Pair,
    grid: Grid,
    *,
    gamma: Fraction | Sequence[Fraction],
    log: Log,
) -> Iterator[Pair]:
    """BDIA-DDIM [BDIA 27], written to `log`: the pairs of neighbouring states, N for N steps.

    `start` is the state at grid[0], int64 from `quantise`; the first step is then DDIM's [BDIA 25].
    Or it is the pair at grid[0] and grid[1]. `gamma` is γ, or 1/γ from the image to noise: one for
    all steps, or one for each but the first. `undo` needs the last pair and the log. The pass may
    be stopped after any pair.

    Raises UserError for a γ that `rational` refuses and for a start that is out of range.
    """
    each = [gamma] * max(len(grid) - 2, 0) if isinstance(gamma, Fraction) else gamma
    for factor in each:
        rational(factor)
    if isinstance(start, Tensor):
        _check_start(start, log)
        (first,) = _ahead(model, start, grid[0], grid[1:2], log)
        log.clipped += _edges(first)
        start = start, first
    yield start
    older, newer = start
    for (past, now, to), factor in zip(_triples(grid), each, strict=True):
        back, on = _ahead(model, newer, now, (past, to), log)
        log.clipped += _edges(back) + _edges(on)
        older, newer = newer, log.push(older, back, on, factor)
        yield older, newer


def undo(model: Denoiser, pair: Pair, grid: Grid, log: Log) -> Iterator[Pair]:
    """The pairs that `bdia_ddim` yielded on this grid, in reverse order, from the last one, `pair`.

    Removes its steps from the log. The first state of the last pair is the start of `bdia_ddim`.

    Raises UserError if the log has fewer steps, and at the first state that differs.
    """
    if len(log) < len(grid) - 2:
        raise UserError(
            f"the log holds {len(log)} steps, this grid has {len(grid) - 2} to undo: give undo the "
            "log and the grid of one pass"
        )
    yield pair
    older, newer = pair
    for to, now, past in _triples(grid[::-1]):
        back, on = _ahead(model, older, now, (past, to), log)
        older, newer = log.pop(newer, back, on), older
        yield older, newer


def _triples(grid: Grid) -> Iterator[tuple[Level, Level, Level]]:
    return zip(grid, grid[1:], grid[2:], strict=False)


def _ahead(model: Denoiser, state: Tensor, now: Level, levels: Grid, log: Log) -> list[Tensor]:
    """The state at other levels, along the line of one estimate; int64."""
    estimate = model(value(state, log.fraction_bits), now)
    return [quantise(estimate.at(level), log.fraction_bits) for level in levels]


def _edges(state: Tensor) -> int:
    """How many numbers have the value that `quantise` gives to numbers out of range."""
    return int((state.abs() == HALF - 1).sum())


def _check_start(start: Tensor, log: Log) -> None:
    if start.dtype != torch.int64:
        raise UserError(f"the start must be int64, not {start.dtype}: give quantise(start)")
    if (start.abs() >= HALF - 1).any():
        limit = HALF / 2**log.fraction_bits
        raise UserError(
            f"the start has numbers that are not finite or not within ±{limit:g}: choose "
            f"fraction_bits below {log.fraction_bits}, for both quantise and Log"
        )
