"""Peers agree: our samplers and diffusers' schedulers of the same methods.

Both get one network (an exact density's, in float64) and one grid, made of the scheduler's own
numbers; its float32 tables are made float64 ones.

Peer                              Ours                                 Largest difference
DDIM                              multistep                            7e-16
DDIMInverse                       inversion [BDIA 10], below           2e-15
EDMEuler                          multistep on EDM levels              3e-7  (a)
HeunDiscrete                      heun                                 1e-15
PNDM, skip_prk_steps              pndm(start=heun, order=4)            1e-14
PNDM                              pndm(start=rk4), halfway by table    4e-15
PNDM                              pndm(start=rk4)                      7e-3  (b)
IPNDM                             multistep(rule=plms)                 2e-15
DPMSolverMultistep                multistep(rule=dpmpp)                3e-7  (a)
  lower_order_final               multistep(rule=dpmpp, final=ddim)    3e-7  (a)
EDMDPMSolverMultistep             multistep(rule=dpmpp), EDM levels    2e-15
DEISMultistep, orders 1 to 3      multistep(rule=deis, log_rho)        1e-14
  lower_order_final, order 2      the same with final=ddim             7e-15
LMSDiscrete                       multistep(rule=deis, order=4, rho)   1e-14

(a) The peer rounds its state to float32 at every step.
(b) A convention: `halfway` takes the geometric mean of σ/α, PNDM looks ᾱ up at the middle time.

`python -m tests.samplers.test_peers` measures these anew. Every case is also run with another
method, which has to differ by more than 1e-3.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bdia_exp.samplers import starts
from bdia_exp.samplers.core import CLEAN, Denoiser, Estimate, Grid, Level, Sampler, transfer
from bdia_exp.samplers.grids import karras, uniform
from bdia_exp.samplers.loops import heun, multistep, pndm
from bdia_exp.samplers.rules import ddim, deis, dpmpp, plms
from bdia_exp.samplers.schedules import DiscreteVP, edm
from tests.laws import MIXTURE, end, states, vp_arc

EXACT = MIXTURE.denoiser()
STEPS = 10
SIGMA_DATA = 0.5


# --- The one network, in the three forms that a scheduler may ask for, and in ours ---


def noise(x: Tensor, level: Level) -> Tensor:
    return EXACT(x, level).eps


def velocity(x: Tensor, level: Level) -> Tensor:
    return (noise(x, level) - level.sigma * x) / level.alpha


def body(x: Tensor, level: Level) -> Tensor:
    """The F of EDM's network, D(z) = c_skip z + c_out F(c_in z), from c_in z [EDM 7]."""
    total = level.sigma**2 + SIGMA_DATA**2
    z = x * total**0.5
    clean = EXACT(z, level).x
    return (clean - SIGMA_DATA**2 / total * z) * total**0.5 / (level.sigma * SIGMA_DATA)


def knowing_times(levels: list[Level]) -> Denoiser:
    """Ours, where a scheduler tells its network the time: all it knows of a level is its time."""
    known = {level.time: level for level in levels}
    return lambda z, level: Estimate(level, z, noise(z, known[level.time]))


# --- A scheduler's run: our grid, the level of each of its evaluations, and the two networks ---


class Setting(NamedTuple):
    grid: Grid
    told: list[Level]
    theirs: Callable[[Tensor, Level], Tensor]
    ours: Denoiser


def peer(name: str) -> type:
    """A scheduler of diffusers, which takes seconds to import: not when tests are collected."""
    import diffusers

    return getattr(diffusers, f"{name}Scheduler")


def ready(kind: type, options: dict[str, Any]):
    """A scheduler with its timesteps set and float64 for float32 in all that it has computed."""
    scheduler = kind(**options)
    scheduler.set_timesteps(STEPS)
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            setattr(scheduler, name, value.double())
    return scheduler


def schedule(scheduler) -> DiscreteVP:
    return DiscreteVP(scheduler.alphas_cumprod.tolist())


def vp(rho: float, time: float = 0.0) -> Level:
    alpha = (1 + rho**2) ** -0.5
    return Level(alpha, alpha * rho, time)


def of_times(scheduler) -> Setting:
    """Schedulers that look ᾱ up at the timestep."""
    level, times = schedule(scheduler), scheduler.timesteps.tolist()
    visited = [level(k) for k in range(max(times), -1, -(len(level) // STEPS))]
    last = CLEAN if scheduler.config.set_alpha_to_one else level(0)
    network = knowing_times([level(k) for k in range(len(level))])
    return Setting((*visited, last), [level(k) for k in times], noise, network)


def of_ratios(scheduler) -> Setting:
    """VP schedulers whose sigmas are σ/α."""
    grid = tuple(map(vp, scheduler.sigmas.tolist(), [*scheduler.timesteps.tolist(), 0]))
    return Setting(grid, [*grid[:-1]], noise, knowing_times([*grid[:-1]]))


def of_scaled_states(scheduler) -> Setting:
    """Schedulers whose state is EDM's and whose network, a VP one, sees it scaled."""
    sigmas = scheduler.sigmas.tolist()
    grid = tuple(map(edm, dict.fromkeys(sigmas)))
    return Setting(grid, [vp(sigma) for sigma in sigmas[:-1]], noise, EXACT)


def of_edm(scheduler) -> Setting:
    grid = tuple(map(edm, scheduler.sigmas.tolist()))
    return Setting(grid, [*grid[:-1]], body, EXACT)


def of_velocities(scheduler) -> Setting:
    """IPNDM's: what it calls β is σ."""
    pairs = zip(scheduler.alphas.tolist(), scheduler.betas.tolist(), strict=True)
    grid = tuple(Level(alpha, sigma, 0.0) for alpha, sigma in pairs)
    return Setting(grid, [*grid[:-1]], velocity, EXACT)


# --- The peers ---


class Case(NamedTuple):
    """A peer and its options, our sampler of the same method, and one of another method."""

    peer: str
    options: dict[str, Any]
    setting: Callable[..., Setting]
    sampler: Sampler
    wrong: Sampler
    bound: float

    def __str__(self) -> str:
        options = [f"{k}={v}" for k, v in self.options.items() if not isinstance(v, list)]
        return " ".join([self.peer, *options])


def inversion(model: Denoiser, z: Tensor, grid: Grid) -> Iterator[Tensor]:
    """DDIM inversion [BDIA 10]: the network sees the lower state, and the higher level's time."""
    for s, t in pairwise(grid[::-1]):
        z = transfer(z, model(z, t).eps, s, t)
        yield z


def walk_back(model: Denoiser, z: Tensor, grid: Grid) -> Iterator[Tensor]:
    """The grid in reverse, where the network is told the time of the state that it sees."""
    return multistep(model, z, grid[::-1])


def f_pndm_by_table(model: Denoiser, z: Tensor, grid: Grid) -> Iterator[Tensor]:
    """F-PNDM, the levels halfway looked up at the middle times as PNDMScheduler does it."""
    level = schedule(ready(peer("PNDM"), {}))
    with patch.object(starts, "halfway", lambda s, t: level(int(s.time + t.time) // 2)):
        yield from f_pndm(model, z, grid)


def exponential(order: int, clock: str) -> Sampler:
    return partial(multistep, rule=partial(deis, order=order, clock=clock))


f_pndm = partial(pndm, start="rk4", order=4)
plms_4 = partial(pndm, start="heun", order=4)
plms_2 = partial(pndm, start="heun", order=2)
ipndm = partial(multistep, rule=plms)
dpm = partial(multistep, rule=dpmpp)
dpm_ddim = partial(multistep, rule=dpmpp, final=ddim)
log_ab = partial(exponential, clock="log_rho")

PRK = {"skip_prk_steps": False, "steps_offset": 1}
PLMS = {"skip_prk_steps": True, "steps_offset": 1}
ARC = {"trained_betas": [level.sigma for level in vp_arc(STEPS, clean=True)]}
LOW = {"lower_order_final": True}
HIGH = {"lower_order_final": False}
NOT_CLEAN = {"final_sigmas_type": "sigma_min"}  # a step to σ = 0 is of order 1 in any case

ONE_STEP = [
    Case("DDIM", {"clip_sample": False}, of_times, multistep, dpm, 5e-15),
    Case("DDIMInverse", {"clip_sample": False}, of_times, inversion, walk_back, 1e-14),
    Case("EDMEuler", {}, of_edm, multistep, heun, 1e-6),
    Case("HeunDiscrete", {}, of_scaled_states, heun, multistep, 1e-14),
]
PNDM = [
    Case("PNDM", PLMS, of_times, plms_4, plms_2, 5e-14),
    Case("PNDM", PRK, of_times, f_pndm_by_table, plms_4, 2e-14),
    Case("IPNDM", ARC, of_velocities, ipndm, plms_4, 1e-14),
]
DPM = [
    Case("DPMSolverMultistep", {}, of_ratios, dpm, multistep, 1e-6),
    Case("DPMSolverMultistep", NOT_CLEAN | LOW, of_ratios, dpm_ddim, dpm, 1e-6),
    Case("DPMSolverMultistep", NOT_CLEAN | HIGH, of_ratios, dpm, dpm_ddim, 1e-6),
    Case("EDMDPMSolverMultistep", {}, of_edm, dpm, multistep, 1e-14),
]
DEIS = [
    Case("DEISMultistep", HIGH | {"solver_order": 1}, of_ratios, log_ab(1), log_ab(2), 5e-14),
    Case("DEISMultistep", HIGH | {"solver_order": 2}, of_ratios, log_ab(2), log_ab(3), 5e-14),
    Case("DEISMultistep", HIGH | {"solver_order": 3}, of_ratios, log_ab(3), log_ab(4), 5e-14),
    Case("DEISMultistep", LOW, of_ratios, partial(log_ab(2), final=ddim), log_ab(2), 5e-14),
    Case("LMSDiscrete", {}, of_scaled_states, exponential(4, "rho"), log_ab(4), 5e-14),
]
HALFWAY = Case("PNDM", PRK, of_times, f_pndm, multistep, 1e-2)


def setting_of(case: Case):
    scheduler = ready(peer(case.peer), case.options)
    return scheduler, case.setting(scheduler)


def difference(case: Case, sampler: Sampler) -> float:
    """The largest one between the peer's last state and a sampler's."""
    scheduler, (grid, told, network, model) = setting_of(case)
    start = z = states(MIXTURE, grid[-1 if case.peer == "DDIMInverse" else 0])
    for t, level in zip(scheduler.timesteps, told, strict=True):
        answer = network(scheduler.scale_model_input(z, t), level)
        z = scheduler.step(answer, t, z, return_dict=False)[0]
    return float((z - end(sampler, model, start, grid)).abs().max())


def check(case: Case) -> None:
    assert difference(case, case.sampler) <= case.bound
    assert difference(case, case.wrong) > 1e-3, "the test cannot tell methods apart"


@pytest.mark.parametrize("case", ONE_STEP, ids=str)
def test_one_step_methods(case):
    check(case)


@pytest.mark.parametrize("case", PNDM, ids=str)
def test_pndm(case):
    check(case)


@pytest.mark.parametrize("case", DPM, ids=str)
def test_dpm_solver(case):
    check(case)


@pytest.mark.parametrize("case", DEIS, ids=str)
def test_exponential_adams_bashforth(case):
    check(case)


def test_the_level_halfway_is_a_convention():
    """Not a peer's agreement: the geometric mean of σ/α is not the ᾱ of the middle time."""
    assert 1e-3 < difference(HALFWAY, f_pndm) <= HALFWAY.bound


@pytest.mark.parametrize("case", [ONE_STEP[2], DPM[-1]], ids=str)
def test_edm_grid(case):
    _, setting = setting_of(case)
    ours = [level.sigma for level in karras(STEPS)]
    assert [level.sigma for level in setting.grid] == pytest.approx(ours, rel=1e-6)


def test_uniform_grid():
    scheduler, setting = setting_of(ONE_STEP[0])
    assert setting.grid == uniform(STEPS, schedule(scheduler))


if __name__ == "__main__":
    for case in [*ONE_STEP, *PNDM, HALFWAY, *DPM, *DEIS]:
        ours, other = difference(case, case.sampler), difference(case, case.wrong)
        print(f"{case!s:75} {ours:.0e}  another method: {other:.0e}")
