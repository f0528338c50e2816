"""BDIA-DDIM in fixed point comes back with every bit, whatever γ, the steps and the network."""

import math
import subprocess
import sys
from fractions import Fraction
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bdia_exp.core import Denoiser, Estimate, Grid, Level
from bdia_exp.errors import UserError
from bdia_exp.fixedpoint import (
    HALF,
    TERMS,
    WORD,
    Log,
    Pair,
    bdia_ddim,
    quantise,
    rational,
    rescale,
    undo,
    value,
)
from bdia_exp.grids import karras, quad
from bdia_exp.models import edm
from bdia_exp.schedules import linear_vp
from bdia_exp.solvers import multistep
from tests.laws import GRIDS, MIXTURE, states, ve_power, vp_arc

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


# --- The law ---


@every_gamma
@both_ways
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@pytest.mark.parametrize("levels", GRIDS, ids=lambda grid: grid.__name__)
def test_every_state_comes_back(levels, clean, steps, gamma, to_noise):
    if levels is ve_power and clean and steps == 1:
        pytest.skip("this grid has at least two steps")
    grid = levels(steps, clean=clean)
    start = quantise(states(MIXTURE, grid[-1 if to_noise else 0]))
    there_and_back(MODEL, start, grid, gamma, to_noise=to_noise)


def test_a_level_that_occurs_twice():
    grid = quad(60, linear_vp())
    assert len(set(grid)) < len(grid)
    start = quantise(states(MIXTURE, grid[-1]))
    there_and_back(MODEL, start, grid, rational(0.92), to_noise=True)


def test_states_that_leave_the_range_are_wrapped_and_come_back():
    grid = vp_arc(60)
    start = quantise(states(MIXTURE, grid[-1]))
    log, pairs = there_and_back(MODEL, start, grid, rational(0.5), to_noise=True)
    assert log.wrapped > 0
    assert any(carry is None for carry in log.carries), "none is kept where none is needed"
    assert max(log.bits()) >= 16
    assert all(z.min() >= -HALF and z.max() < HALF for pair in pairs for z in pair)


def test_words_that_fill_up_are_put_away_and_come_back():
    grid = vp_arc(100)
    start = quantise(states(MIXTURE, grid[0]))
    log, _ = there_and_back(MODEL, start, grid, rational(0.1), to_noise=False)
    assert len(log.words) == 5
    assert all((word >= 0).all() for word in log.words)


def conv_net(dtype: torch.dtype) -> Denoiser:
    """A random network of two convolutions."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    net = net.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)

    def denoise(z: Tensor, level: Level) -> Estimate:
        scale = math.hypot(level.alpha, level.sigma)
        return Estimate(level, z, net((z / scale).to(dtype)).to(z.dtype))

    return denoise


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", [Fraction(1), rational(0.92), rational(0.5)], ids=str)
def test_networks_that_compute_in_few_bits(dtype, gamma, to_noise):
    start = quantise(torch.randn(5, 3, 9, 9).double())
    there_and_back(conv_net(dtype), start, vp_arc(20), gamma, to_noise=to_noise)


@both_ways
def test_the_bundled_model_in_bfloat16(to_noise):
    model = edm.load("bundled:fashion_mini.safetensors", dtype="bfloat16")
    grid = karras(3)
    z = torch.randn(2, *model.shape).double() * (0.5 if to_noise else 80)
    denoiser = model.denoiser(torch.tensor([3, 7]))
    there_and_back(denoiser, quantise(z), grid, rational(0.92), to_noise=to_noise)


@both_ways
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_network_that_breaks_down(bad, to_noise):
    def broken(z: Tensor, level: Level) -> Estimate:
        eps = z.clone()
        eps[::2] = bad
        return Estimate(level, z, eps)

    start = quantise(torch.randn(4, 1, 2, 3).double())
    log, _ = there_and_back(broken, start, vp_arc(30), rational(0.75), to_noise=to_noise)
    assert log.clipped > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both_ways
def test_on_a_gpu(to_noise):
    model = edm.load("bundled:fashion_mini.safetensors", device="cuda", dtype="bfloat16")
    z = torch.randn(16, *model.shape, device="cuda").double() * (0.5 if to_noise else 80)
    denoiser = model.denoiser(torch.arange(16) % 10)
    there_and_back(denoiser, quantise(z), karras(20), rational(0.5), to_noise=to_noise)


def round_trip_in_float(z: Tensor, grid: Grid, gamma: float) -> Tensor:
    """The start as `multistep` finds it again from its last two states."""
    trajectory = [z, *multistep(MODEL, z, grid, gamma=gamma)]
    restart = Estimate(grid[-1], trajectory[-1], torch.zeros_like(z))
    *_, back = multistep(MODEL, trajectory[-2], grid[:-1][::-1], gamma=1 / gamma, trail=[restart])
    return back


@pytest.mark.parametrize("gamma", [1.0, 0.92, 0.5])
def test_floating_point_does_not_come_back(gamma):
    grid = vp_arc(40)
    z = states(MIXTURE, grid[0])
    assert not torch.equal(round_trip_in_float(z, grid, gamma), z)


# --- It is BDIA-DDIM ---


@both_ways
@pytest.mark.parametrize("levels", GRIDS, ids=lambda grid: grid.__name__)
@pytest.mark.parametrize("gamma", [1.0, 0.98, 0.92])
@pytest.mark.parametrize(("fraction_bits", "tolerance"), [(32, 1e-6), (40, 1e-8)])
def test_agrees_with_multistep(levels, gamma, fraction_bits, tolerance, to_noise):
    exact, grid = rational(gamma), levels(20)
    if to_noise:
        grid, gamma, exact = grid[::-1], 1 / gamma, 1 / exact
    z = states(MIXTURE, grid[0])
    log = Log(fraction_bits)
    pairs = bdia_ddim(MODEL, quantise(z, fraction_bits), grid, gamma=exact, log=log)
    ours = [value(newer, fraction_bits) for _, newer in pairs]
    for a, b in zip(ours, multistep(MODEL, z, grid, gamma=gamma), strict=True):
        assert (a - b).abs().max() < tolerance
    assert log.clipped == log.wrapped == 0


def test_goes_on_from_a_pair():
    grid, gamma = vp_arc(9), rational(0.75)
    log = Log()
    pairs = list(bdia_ddim(MODEL, quantise(states(MIXTURE, grid[0])), grid, gamma=gamma, log=log))
    log = Log()
    head = list(bdia_ddim(MODEL, pairs[0], grid[:5], gamma=gamma, log=log))
    tail = list(bdia_ddim(MODEL, head[-1], grid[3:], gamma=gamma, log=log))
    assert all(same(a, b) for a, b in zip(head + tail[1:], pairs, strict=True))
    back = list(undo(MODEL, tail[-1], grid, log))
    assert all(same(a, b) for a, b in zip(back, pairs[::-1], strict=True))


def test_a_new_pass_from_the_noisy_pair_finds_the_image():
    """How an edit starts: with a log of its own, so only as near as the rounding allows."""
    grid, gamma = vp_arc(20), rational(0.92)
    start = quantise(states(MIXTURE, grid[-1]))
    *_, pair = bdia_ddim(MODEL, start, grid[::-1], gamma=1 / gamma, log=Log())
    *_, (_, image) = bdia_ddim(MODEL, pair[::-1], grid, gamma=gamma, log=Log())
    assert (value(image) - value(start)).abs().max() < 1e-6


def test_a_pass_may_be_stopped_after_any_pair():
    grid, log = vp_arc(9), Log()
    start = quantise(states(MIXTURE, grid[0]))
    passing = bdia_ddim(MODEL, start, grid, gamma=rational(0.92), log=log)
    for _ in range(4):
        pair = next(passing)
    passing.close()
    *_, (back, _) = undo(MODEL, pair, grid[:5], log)
    assert torch.equal(back, start)


# --- Rescaling ---


def random_digits(random: Random, count: int, bound: int) -> list[int]:
    return [random.choice([0, bound - 1, random.randrange(bound)]) for _ in range(count)]


def test_rescaling_is_a_bijection_and_agrees_with_big_integers():
    random = Random(0)
    for _ in range(300):
        a, b = (random.choice([1, TERMS, random.randint(1, TERMS)]) for _ in "ab")
        us = [2 * u - 2 * HALF for u in random_digits(random, 50, 2 * HALF + 1)]
        ws = random_digits(random, 50, (WORD + 1) // max(a, b))
        scaled, buffer = rescale(torch.tensor(us), torch.tensor(ws), a, b)
        for u, w, new_u, new_w in zip(us, ws, scaled.tolist(), buffer.tolist(), strict=True):
            top = w * b + u % b
            assert (new_u, new_w) == (u // b * a + top % a, top // a)
            assert abs(new_u - Fraction(u * a, b)) < max(a, b)
        again, before = rescale(scaled, buffer, b, a)
        assert again.tolist() == us
        assert before.tolist() == ws


def test_a_log_is_a_stack_of_digits_of_any_length():
    """Any factors in any order, states anywhere in the range."""
    random, log = Random(1), Log()

    def anything() -> Tensor:
        return torch.tensor([u - HALF for u in random_digits(random, 20, 2 * HALF)])

    state, way = anything(), []
    for _ in range(300):
        back, on = anything(), anything()
        factor = Fraction(random.randint(1, TERMS // 2), random.randint(1, TERMS))
        way.append((state, back, on))
        state = log.push(state, back, on, factor)
        assert log.buffer.min() >= 0
        assert log.buffer.max() < log.bound <= WORD
        assert state.min() >= -HALF
        assert state.max() < HALF
    assert len(log.words) > 3
    for older, back, on in way[::-1]:
        state = log.pop(state, back, on)
        assert torch.equal(state, older)
    assert not log.words
    assert log.bound == 1
    assert not log.buffer.any()


def test_quantising_is_total_and_exact_for_what_is_in_range():
    z = torch.tensor([0.1, -3.0, 2.0**-33, 1.5 * 2.0**-32, math.nan, math.inf, -1e300])
    units = quantise(z.double())
    edge = HALF - 1
    assert units.tolist() == [round(z[0].item() * 2**32), -3 << 32, 0, 2, edge, edge, -edge]
    assert torch.equal(quantise(value(units)), units)
    assert quantise(torch.tensor(3.0), 2).tolist() == 12


# --- What it costs ---


@pytest.mark.parametrize("gamma", GAMMAS[1:], ids=str)
def test_side_information_is_log2_of_one_over_gamma_a_step(gamma):
    grid = vp_arc(200)
    start = quantise(states(MIXTURE, grid[0], 200))
    log = Log()
    for _ in bdia_ddim(MODEL, start, grid, gamma=gamma, log=log):
        pass
    bits, expected = log.bits(), math.log2(1 / gamma)
    assert len(bits) == len(log) == 199
    assert sum(bits[-50:]) / 50 == pytest.approx(expected, abs=0.02)
    excess = sum(bits) - 199 * expected
    assert -1e-6 < excess < math.log2(1 / (1 - gamma)) * (1 + len(log.words))
    assert log.buffer.max() > float(1 - gamma) * log.bound / 2, "no less would do"


def test_gamma_one_needs_none():
    grid = vp_arc(30)
    log, _ = there_and_back(
        MODEL, quantise(states(MIXTURE, grid[0])), grid, Fraction(1), to_noise=False
    )
    assert log.bits() == [0.0] * 29
    assert not log.buffer.any()
    assert log.tensors()["buffer"].numel() == 1


def test_from_the_image_to_noise_the_states_grow_instead():
    grid = vp_arc(20)
    start = quantise(states(MIXTURE, grid[-1]))
    log, _ = there_and_back(MODEL, start, grid, rational(0.75), to_noise=True)
    assert log.bits() == [0.0] * 19
    assert log.wrapped == 0


# --- Saved and loaded ---


@both_ways
@pytest.mark.parametrize("gamma", [rational(0.92), rational(0.1)], ids=str)
def test_a_log_is_saved_and_loaded(gamma, to_noise, tmp_path):
    grid = vp_arc(50)[:: -1 if to_noise else 1]
    start, log = quantise(states(MIXTURE, grid[0])), Log(32)
    factor = 1 / gamma if to_noise else gamma
    *_, (older, newer) = bdia_ddim(MODEL, start, grid, gamma=factor, log=log)
    save_file({"older": older, "newer": newer, **log.tensors()}, tmp_path / "pass.safetensors")
    loaded = load_file(tmp_path / "pass.safetensors")
    again = Log.from_tensors(loaded)
    assert again.bits() == log.bits()
    assert (again.clipped, again.wrapped) == (log.clipped, log.wrapped)
    *_, (back, _) = undo(MODEL, (loaded["older"], loaded["newer"]), grid, again)
    assert torch.equal(back, start)


def test_an_image_comes_back_in_another_process(tmp_path):
    model = edm.load("bundled:fashion_mini.safetensors", dtype="bfloat16")
    grid, log = karras(3)[::-1], Log()
    start = quantise(torch.rand(1, *model.shape) * 2 - 1)
    denoiser = model.denoiser(torch.tensor([3]))
    *_, (older, newer) = bdia_ddim(denoiser, start, grid, gamma=1 / rational(0.92), log=log)
    file = tmp_path / "pass.safetensors"
    save_file({"start": start, "older": older, "newer": newer, **log.tensors()}, file)
    program = """
import sys, torch
from safetensors.torch import load_file
from bdia_exp.fixedpoint import Log, undo
from bdia_exp.grids import karras
from bdia_exp.models import edm
torch.set_num_threads(1)
kept = load_file(sys.argv[1])
model = edm.load("bundled:fashion_mini.safetensors", dtype="bfloat16")
denoiser = model.denoiser(torch.tensor([3]))
pair = kept["older"], kept["newer"]
*_, (back, _) = undo(denoiser, pair, karras(3)[::-1], Log.from_tensors(kept))
assert torch.equal(back, kept["start"])
"""
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)


def test_the_memory_layout_of_a_state_does_not_matter():
    denoiser = conv_net(torch.bfloat16)
    grid, log = vp_arc(6), Log()
    start = quantise(torch.randn(4, 3, 9, 9).double())
    *_, pair = bdia_ddim(denoiser, start, grid, gamma=rational(0.92), log=log)
    other = tuple(z.contiguous(memory_format=torch.channels_last) for z in pair)
    *_, (back, _) = undo(denoiser, other, grid, log)
    assert torch.equal(back, start)


# --- What is refused ---


def nearly_the_model(z: Tensor, level: Level) -> Estimate:
    return MODEL(z * (1 + 1e-8), level)._replace(z=z)


@pytest.mark.parametrize("gamma", [Fraction(1), rational(0.92), rational(0.5)], ids=str)
@pytest.mark.parametrize("changed", ["state", "digit", "model", "grid"])
def test_undo_sees_whatever_is_not_as_it_was(changed, gamma):
    if changed == "digit" and gamma == 1:
        pytest.skip("there are no digits")
    grid, log = vp_arc(10), Log()
    *_, (older, newer) = bdia_ddim(
        MODEL, quantise(states(MIXTURE, grid[0])), grid, gamma=gamma, log=log
    )
    model = MODEL
    if changed == "state":
        newer[3, 0, 1, 1] += 1
    if changed == "digit":
        log.buffer[3, 0, 1, 1] += 1
    if changed == "model":
        model = nearly_the_model
    if changed == "grid":
        grid = vp_arc(10, clean=True)
    with pytest.raises(UserError, match="not the way that the log was written"):
        list(undo(model, (older, newer), grid, log))


def test_a_log_with_too_few_steps_is_refused():
    pair = 2 * (quantise(states(MIXTURE, vp_arc(5)[0])),)
    with pytest.raises(UserError, match="holds 0 steps, this grid has 4"):
        next(undo(MODEL, pair, vp_arc(5), Log()))


def test_what_is_no_log_is_refused():
    with pytest.raises(UserError, match="'steps' is not there"):
        Log.from_tensors({"log": torch.tensor([32, 0, 1]), "buffer": torch.zeros(())})


@pytest.mark.parametrize("start", [1e6, math.nan])
def test_a_start_out_of_range_is_refused(start):
    state = quantise(torch.tensor([0.5, start]))
    with pytest.raises(UserError, match=r"not within ±524288: choose fraction_bits below 32"):
        next(bdia_ddim(MODEL, state, vp_arc(3), gamma=Fraction(1), log=Log()))


def test_a_start_that_was_not_quantised_is_refused():
    with pytest.raises(UserError, match="give quantise"):
        next(bdia_ddim(MODEL, torch.zeros(2), vp_arc(3), gamma=Fraction(1), log=Log()))


@pytest.mark.parametrize(
    ("gamma", "fraction"),
    [(0.92, (23, 25)), (1, (1, 1)), (1.0, (1, 1)), ("1/3", (1, 3)), (Fraction(2, 7), (2, 7))],
)
def test_gamma_is_read_as_it_is_written(gamma, fraction):
    assert rational(gamma) == Fraction(*fraction)


@pytest.mark.parametrize(
    ("gamma", "advice"),
    [
        (0, "above 0 and at most 1"),
        (-0.5, "above 0 and at most 1"),
        (1.5, "above 0 and at most 1"),
        (math.nan, "is no number"),
        (math.inf, "is no number"),
        ("half", "is no number"),
        (0.123456789, "at most three decimals, such as 0.123$"),
        (1e-7, "such as 0.001$"),
        (Fraction(1, 1025), "over 1024"),
    ],
)
def test_a_gamma_that_cannot_be_undone_is_refused(gamma, advice):
    with pytest.raises(UserError, match=advice):
        rational(gamma)


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(-1), Fraction(1, 5000), Fraction(5000)])
def test_the_loop_refuses_them_too(gamma):
    with pytest.raises(UserError, match="gamma="):
        next(bdia_ddim(MODEL, quantise(torch.zeros(2)), vp_arc(3), gamma=gamma, log=Log()))
