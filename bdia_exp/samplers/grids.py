"""Grids: the levels that a sampler visits, from noise to data.

Every grid is a function of (steps, schedule) and returns steps + 1 levels. `schedule` is the
model's. `karras` and `arc` keep to the σ/α that it supports, `arc` takes the times from any
schedule, `quadratic_time` needs a `Diffusion`, and the others the table of a `DiscreteVP`.

`pairing` says which ᾱ goes with the time k that the network is given (docs/samplers.md, "Grids"):

* `ddim`: ᾱ_k, and the last level is clean, (1, 0), as in the DDIM paper's code;
* `pndm`: ᾱ_{k+1}, and the last level is ᾱ_0, as in the code that published the checkpoints of
  BDIA's Table 2.

`final` says where a grid of Stable Diffusion's times ends: `first` at ᾱ_0, as in its own code and
in diffusers with set_alpha_to_one=False, `clean` at (1, 0).
"""

import math
from collections.abc import Sequence

from bdia_exp.errors import UserError, nearest
from bdia_exp.samplers.core import CLEAN, Grid, Level
from bdia_exp.samplers.linear import Diffusion
from bdia_exp.samplers.schedules import DiscreteVP, Schedule, edm

LEAST_SIGMA = 1e-9
"""The least sigma_min; its inverse is the largest sigma_max. Beyond them float64 is not enough."""
PAIRINGS = {"ddim": 0, "pndm": 1}


def karras(
    steps: int,
    schedule: Schedule | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Grid:
    """EDM's grid: `steps` values of σ, evenly spaced in σ^(1/ρ), then 0 [EDM 5].

    As in EDM's program, σ stays in the range that the network supports. Raises UserError if
    0 < sigma_min < sigma_max does not hold, and for a ρ at which float64 does not hold the powers:
    outside 0.1 to 1000, or too small for the range.
    """
    sigma_min, sigma_max = _range(sigma_min, sigma_max, schedule)
    if not 0.1 <= rho <= 1000:
        raise UserError(f"grid.rho={rho} must be 0.1 to 1000; EDM uses 7")
    hi, lo = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    last = max(steps - 1, 1)  # a single step starts at sigma_max
    sigmas = [(hi + i / last * (lo - hi)) ** rho for i in range(steps)]
    if steps > 1 and not math.isclose(sigmas[-1], sigma_min, rel_tol=1e-3):
        raise UserError(f"grid.rho={rho} is too small for this range of σ; EDM uses 7")
    return (*map(edm, sigmas), CLEAN)


def arc(
    steps: int,
    schedule: Schedule | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Grid:
    """VP levels (cos θ, sin θ), θ = atan(σ/α) evenly spaced; it ends at sigma_min, not clean.

    sigma_max and sigma_min are values of σ/α, and stay in the supported range, as in `karras`. The
    levels lie on a smooth curve, on which a sampler's order can be measured. Times are fractional
    times of the schedule, or θ without a schedule. Raises UserError if 0 < sigma_min < sigma_max
    does not hold, or if sigma_max is beyond the schedule's end.
    """
    sigma_min, sigma_max = _range(sigma_min, sigma_max, schedule)
    start, end = math.atan(sigma_max), math.atan(sigma_min)
    angles = (start + i / steps * (end - start) for i in range(steps + 1))
    return tuple(
        Level(math.cos(a), math.sin(a), schedule.at(math.tan(a)).time if schedule else a)
        for a in angles
    )


def uniform(steps: int, schedule: DiscreteVP, *, pairing: str = "ddim") -> Grid:
    """Times ⌊iT/N⌋, i = 0 … N−1, then the last level [DDIM D.3 "linear"].

    Equal to the usual range(0, T, T//N) when N divides T, and N steps long also when it does not.
    """
    times = _times(schedule)
    return _to_the_end([i * times // steps for i in range(steps)], schedule, pairing)


def quad(steps: int, schedule: DiscreteVP, *, fraction: float = 0.8, pairing: str = "ddim") -> Grid:
    """Times ⌊τ_i²⌋ with τ evenly spaced on [0, √(fraction · T)] [DDIM D.3 "quadratic"].

    Small times may occur twice, as in the official code: DDIM's step between them is the identity
    and still costs an evaluation.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"grid.fraction={fraction} must be more than 0 and at most 1")
    return _to_the_end(_squares(0.0, fraction * _times(schedule), steps), schedule, pairing)


def quad_full(steps: int, schedule: DiscreteVP, *, pairing: str = "ddim") -> Grid:
    """`quad` over the whole range: τ evenly spaced on [0, √(T − 1)]."""
    return _to_the_end(_squares(0.0, _times(schedule) - 1, steps), schedule, pairing)


def deis_quad(
    steps: int, schedule: DiscreteVP, *, pairing: str = "ddim", last_step: bool = False
) -> Grid:
    """DEIS's quadratic times: N + 1 of them, from T − 2 down to 0, where the grid ends.

    The last level is that of time 0, not clean. With `last_step`: N times that end at 1, then 0.
    """
    top = _times(schedule) - 1
    times = [0, *_squares(1.0, top, steps)] if last_step else _squares(0.0, top, steps + 1)
    shift = _shift(pairing)
    return tuple(schedule(k, shift=shift) for k in reversed(times))


def leading(steps: int, schedule: DiscreteVP, *, offset: int = 1, final: str = "first") -> Grid:
    """Times i⌊T/N⌋ + offset, i = 0 … N−1, then the last level: Stable Diffusion's own spacing.

    1, 101, …, 901 for N = 10. diffusers calls it "leading"; EDICT's code uses offset=0.
    """
    jump = _jump(steps, schedule, offset)
    return _to_the_final([i * jump + offset for i in range(steps)], schedule, final)


def trailing(steps: int, schedule: DiscreteVP, *, final: str = "first") -> Grid:
    """Times round(T − iT/N) − 1, i = 0 … N−1, then the last level: diffusers' "trailing"."""
    _jump(steps, schedule)
    ratio = _times(schedule) / steps
    times = [round(_times(schedule) - i * ratio) - 1 for i in range(steps)]
    return _to_the_final(times[::-1], schedule, final)


def linspace(steps: int, schedule: DiscreteVP, *, final: str = "first") -> Grid:
    """Times round(i (T−1)/(N−1)), i = 0 … N−1, then the last level: diffusers' "linspace".

    With final=first the last step, which starts at time 0, is the identity.
    """
    _jump(steps, schedule)
    ratio = (len(schedule) - 1) / max(steps - 1, 1)
    times = [round(i * ratio) for i in range(steps)] if steps > 1 else [len(schedule) - 1]
    return _to_the_final(times, schedule, final)


def time_uniform(
    steps: int, schedule: DiscreteVP, *, whole: bool = False, final: str = "first"
) -> Grid:
    """N times evenly spaced from T − 1 towards 0, then the last level: DPM-Solver's spacing.

    Times are fractional as in Stable Diffusion's own DPM-Solver; whole=true rounds them, as
    diffusers' DPM-Solver with "linspace" does. Its final_sigmas_type "sigma_min" is final=first,
    and "zero" is final=clean.
    """
    last = _times(schedule) - 1
    _jump(steps, schedule)
    times = [last - i * last / steps for i in range(steps)]
    levels = (schedule.between(float(round(k)) if whole else k) for k in times)
    return (*levels, _final(final, schedule))


def quadratic_time(
    steps: int, schedule: Schedule | None, *, t_min: float = 1e-3, final: str = "clean"
) -> Grid:
    """gDDIM's grid for a diffusion: √t evenly spaced from √T to √t_min [gDDIM code].

    With final=clean the last of the `steps` goes from t_min to the clean level, so it is the
    estimate x̂ at t_min; with final=first the grid ends at t_min. Raises UserError for a schedule
    that is no diffusion, or unless 0 < t_min < T.
    """
    if not isinstance(schedule, Diffusion):
        raise UserError("grid=quadratic_time needs the time of a diffusion: choose diffusion=cld")
    if not 0 < t_min < schedule.T:
        raise UserError(f"grid.t_min={t_min} must be above 0 and below {schedule.T:g}")
    _check_final(final)
    count = steps - (final == "clean")
    start, end = math.sqrt(schedule.T), math.sqrt(t_min)
    times = [(start + i / max(count, 1) * (end - start)) ** 2 for i in range(count + 1)]
    return (*map(schedule.level, times), *([CLEAN] if final == "clean" else []))


FINALS = ("first", "clean")


def _to_the_final(times: Sequence[int], schedule: DiscreteVP, final: str) -> Grid:
    """The levels of rising `times`, noisiest first, and the last level that `final` names."""
    return (*(schedule(k) for k in reversed(times)), _final(final, schedule))


def _final(final: str, schedule: DiscreteVP) -> Level:
    _check_final(final)
    return CLEAN if final == "clean" else schedule(0)


def _check_final(final: str) -> None:
    if final not in FINALS:
        raise UserError(f"grid.final={final!r} is unknown{nearest(final, FINALS)}")


def _jump(steps: int, schedule: DiscreteVP, offset: int = 0) -> int:
    """⌊T/N⌋. Raises UserError if there are too many steps, or the offset is too large."""
    jump = _times(schedule) // steps
    if not 0 <= offset < max(jump, 1) or jump < 1:
        raise UserError(
            f"{steps} steps with an offset of {offset} do not fit into {len(schedule)} times: use "
            "fewer steps"
        )
    return jump


def _times(schedule: Schedule | None) -> int:
    """The number of times in a schedule's table. Raises UserError for a schedule without one."""
    if isinstance(schedule, DiscreteVP):
        return len(schedule)
    raise UserError(
        "this grid needs a model with a table of times: choose grid=karras or grid=arc, or with "
        "diffusion=cld grid=quadratic_time"
    )


def _squares(low: float, high: float, count: int) -> list[int]:
    """⌊τ²⌋ for `count` values of τ evenly spaced on [√low, √high], as by numpy.linspace."""
    start, stop = math.sqrt(low), math.sqrt(high)
    if count == 1:
        return [int(stop**2)]  # one step starts at the noisy end
    step = (stop - start) / (count - 1)
    roots = [start + i * step for i in range(count - 1)] + [stop]
    return [int(root**2) for root in roots]


def _to_the_end(times: Sequence[int], schedule: DiscreteVP, pairing: str) -> Grid:
    """The levels of `times`, noisiest first, and the pairing's last level."""
    shift = _shift(pairing)
    return tuple(schedule(k, shift=shift) for k in (*reversed(times), -1))


def _range(sigma_min: float, sigma_max: float, schedule: Schedule | None) -> tuple[float, float]:
    """Both, moved into the range of σ/α that the schedule's network supports."""
    if not LEAST_SIGMA <= sigma_min < sigma_max <= 1 / LEAST_SIGMA:
        raise UserError(
            f"grid: sigma_min={sigma_min} and sigma_max={sigma_max} must be 0 < min < max, and "
            f"within {LEAST_SIGMA:g} and {1 / LEAST_SIGMA:g}"
        )
    least, most = schedule.supported if schedule else (sigma_min, sigma_max)
    low, high = max(sigma_min, least), min(sigma_max, most)
    if not low < high:
        raise UserError(
            f"grid: this network supports sigma from {least:g} to {most:g}, not from {sigma_min:g} "
            f"to {sigma_max:g}: set grid.sigma_min and grid.sigma_max"
        )
    return low, high


def _shift(pairing: str) -> int:
    if pairing not in PAIRINGS:
        raise UserError(f"grid.pairing={pairing!r} is unknown{nearest(pairing, PAIRINGS)}")
    return PAIRINGS[pairing]
