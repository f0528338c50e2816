"""Coefficients by least squares, one step after the other, in the loop that will use them.

A fit runs a sampler on a batch of starting noises. At each step it chooses the coefficients that
bring the state closest to a target; the next step starts from the fitted state. One problem per
step, over all elements of all images. IIA's (13), (19) and (23) are this, each for its columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Estimate
from bdia_exp.samplers.weights import Addition, Given, moved

CUT_OFF = 1e-7
"""Singular values below this multiple of the largest are dropped; columns are scaled to norm 1."""
TRIALS = 4
"""The values tried for a coefficient of which the step is not a linear function."""

Target = Callable[[int, Estimate], Tensor]
"""(steps left, the newest evaluation) → the state that the step should reach."""


@dataclass(frozen=True)
class Bounds:
    """Coefficients are kept `within` these two, and rounded to fractions with at most this
    `denominator`: a γ that can be undone, also in fixed point. None: not."""

    within: tuple[float, float] | None = None
    denominator: int | None = None

    def __call__(self, weight: float) -> float:
        """The nearest coefficient that is allowed. Raises UserError if there is none."""
        low, high = self.within or (-math.inf, math.inf)
        weight = min(max(weight, low), high)
        if not self.denominator:
            return weight
        nearest = float(Fraction(weight).limit_denominator(self.denominator))
        if low <= nearest <= high:
            return nearest
        whole = range(1, self.denominator + 1)  # then the first fraction inside one of the bounds
        ends = [math.ceil(low * d) / d for d in whole] + [math.floor(high * d) / d for d in whole]
        inside = [end for end in ends if low <= end <= high]
        if not inside:
            raise UserError(
                f"fit.within=[{low:g},{high:g}] contains no fraction with a denominator of at most "
                f"{self.denominator}: give a larger fit.denominator, or other bounds"
            )
        return min(inside, key=lambda end: abs(end - weight))


@dataclass
class Step:
    """What the fit of one step found. RMS of the residual without and with the coefficients."""

    row: list[float] = field(default_factory=list)
    before: float | None = None
    after: float | None = None
    condition: float | None = None
    reach: list[float] = field(default_factory=list)
    """The coefficient with which each column alone is as large as the residual without columns."""


@dataclass
class Fit:
    """`Weights` that solve for the coefficients of each step, and keep them.

    With `keep_variance` the step also has the contrast of the target: the same sum of squares of
    the pixels about the mean of their image and channel.

    Raises UserError if a step has more columns than equations, or if it is no longer finite.
    """

    target: Target
    bounds: Bounds = Bounds()
    keep_variance: bool = False
    steps: list[Step] = field(default_factory=list)

    def __bool__(self) -> bool:
        return True

    def __call__(self, step: Addition, /) -> Sequence[float]:
        if not step.columns:
            self.steps.append(Step())
            return []
        goal = self.target(step.left, step.now)
        row, condition = self._row(goal, step)
        before, after = _residuals(goal, step, row)
        reach = [before / max(rms(column), 1e-300) for column in step.columns]
        self.steps.append(Step(row, before, after, condition, reach))
        return row

    def _row(self, goal: Tensor, step: Addition) -> tuple[list[float], float]:
        base, columns, after = step.base, step.columns, step.after
        if after is None:
            like = base if self.keep_variance else None
            row, condition = least_squares(columns, goal - base, like)
        else:
            (column,) = columns
            row, condition = [_secant(lambda w: after(base + w * column), goal)], 1.0
        return [self.bounds(w) for w in row], condition

    @property
    def rows(self) -> list[list[float]]:
        return [step.row for step in self.steps]


@dataclass
class Probe:
    """`Weights` of 0 that find the largest number of columns of a step: for a trial run."""

    most: int = 0

    def __bool__(self) -> bool:
        return True

    def __call__(self, step: Addition, /) -> Sequence[float]:
        self.most = max(self.most, len(step.columns))
        return [0.0] * len(step.columns)


@dataclass
class Watch:
    """`Weights` that are known, and that measure the residual of each step: for other noises."""

    rows: Sequence[Sequence[float]]
    target: Target
    steps: list[Step] = field(default_factory=list)

    def __bool__(self) -> bool:
        return True

    def __call__(self, step: Addition, /) -> Sequence[float]:
        row = [*Given(self.rows)(step)]
        if row:
            residuals = _residuals(self.target(step.left, step.now), step, row)
            self.steps.append(Step(row, *residuals))
        else:
            self.steps.append(Step())
        return row


def _residuals(goal: Tensor, step: Addition, row: Sequence[float]) -> tuple[float, float]:
    """The RMS distance of the step's end from `goal`, without and with the columns."""
    finish = step.after or (lambda z: z)
    fitted = moved(step.base, row, step.columns)
    return rms(goal - finish(step.base)), rms(goal - finish(fitted))


def least_squares(
    columns: Sequence[Tensor], goal: Tensor, base: Tensor | None = None
) -> tuple[list[float], float]:
    """The coefficients of the columns that come closest to `goal`, and the condition number.

    float64, by the singular values of the columns scaled to norm 1; parallel columns share their
    coefficient (minimum norm). With a `base`, base + Σ w column also has the contrast of
    base + goal, if the columns can give it. Raises UserError for fewer equations than columns, and
    for numbers that are not finite.
    """
    table = torch.stack([column.double().flatten() for column in columns], 1)
    if len(table) < len(columns):
        raise UserError(
            f"a fit of {len(columns)} coefficients a step needs more than {len(table)} numbers: "
            "give a larger fit.images="
        )
    wanted = goal.double().flatten()
    if not (table.isfinite().all() and wanted.isfinite().all()):
        raise UserError("the sampler diverged during the fit: use more nfe=")
    scale = table.norm(dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    u, s, vh = torch.linalg.svd(table / scale, full_matrices=False)
    kept = s > CUT_OFF * s[0]
    along = u.T @ wanted
    if base is not None and kept.any():
        basis = u[:, kept]
        along[kept] = _with_contrast(basis, along[kept], base.double(), goal.double())
    solved = vh.T @ torch.where(kept, along / s.clamp(min=1e-300), 0.0)
    condition = float(s[0] / s[-1]) if s[-1] > 0 else float("inf")
    return (solved / scale).tolist(), condition


def _with_contrast(basis: Tensor, best: Tensor, base: Tensor, goal: Tensor) -> Tensor:
    """The v nearest to `best` for which base + basis v has the contrast of base + goal.

    By Lagrange's multiplier μ: (1 + μ M) v = best − μ d, where C removes the means, M = basisᵀ C
    basis and d = basisᵀ C base. The contrast falls as μ rises; bisection finds μ.
    """

    def centred(x: Tensor) -> Tensor:
        return (x - x.mean((-2, -1), keepdim=True)).flatten()

    sides = [centred(column.reshape(base.shape)) for column in basis.T]
    side, start = torch.stack(sides, 1), centred(base)
    m, d = side.T @ side, side.T @ start
    wanted = centred(base + goal).square().sum() - start.square().sum()
    unit = torch.eye(len(best), dtype=m.dtype, device=m.device)

    def solved(multiplier: float) -> Tensor:
        return torch.linalg.solve(unit + multiplier * m, best - multiplier * d)

    def excess(multiplier: float) -> float:
        v = solved(multiplier)
        return float(2 * d @ v + v @ m @ v - wanted)

    low, high = -0.9 / float(torch.linalg.eigvalsh(m)[-1].clamp(min=1e-12)), 1e3
    if excess(low) < 0 or excess(high) > 0:
        return best  # no coefficients near the best ones give this contrast
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return solved((low + high) / 2)


def _secant(step: Callable[[float], Tensor], goal: Tensor) -> float:
    """The best of TRIALS values of one coefficient: 0, ¼, and Gauss-Newton steps by the secant."""
    tried: dict[float, Tensor] = {0.0: step(0.0), 0.25: step(0.25)}
    old, new = 0.0, 0.25
    for _ in range(TRIALS - 2):
        slope = (tried[new] - tried[old]) / (new - old)
        change = float(((goal - tried[new]) * slope).sum() / slope.square().sum().clamp(min=1e-300))
        old, new = new, new + change
        if new in tried:
            break
        tried[new] = step(new)
    return min(tried, key=lambda w: rms(goal - tried[w]))


def rms(x: Tensor) -> float:
    """The root of the mean square of all elements, in float64."""
    return float(x.double().square().mean().sqrt())
