"""The log of a pass in fixed point: its digits, what they cost, its files, and what is refused."""

import math
from fractions import Fraction
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import Estimate, Level
from bdia_exp.samplers.fixedpoint import (
    HALF,
    TERMS,
    WORD,
    Log,
    bdia_ddim,
    quantise,
    rational,
    rescale,
    undo,
    value,
)
from tests.laws import MIXTURE, states, vp_arc
from tests.samplers.round_trips import GAMMAS, MODEL, both_ways, there_and_back

pytestmark = pytest.mark.quick

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
    with pytest.raises(UserError, match="not the one that wrote the log"):
        list(undo(model, (older, newer), grid, log))


def test_a_log_with_too_few_steps_is_refused():
    pair = 2 * (quantise(states(MIXTURE, vp_arc(5)[0])),)
    with pytest.raises(UserError, match="holds 0 steps, this grid has 4"):
        next(undo(MODEL, pair, vp_arc(5), Log()))


def test_what_is_no_log_is_refused():
    with pytest.raises(UserError, match="'steps' is missing"):
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
    [
        (0.92, (23, 25)),
        (1, (1, 1)),
        (1.0, (1, 1)),
        ("1/3", (1, 3)),
        (Fraction(2, 7), (2, 7)),
        (1.5, (3, 2)),
        (1 / 3, (1, 3)),
    ],
)
def test_gamma_is_read_as_it_is_written(gamma, fraction):
    assert rational(gamma) == Fraction(*fraction)


@pytest.mark.parametrize(
    ("gamma", "advice"),
    [
        (0, "choose one above 0"),
        (-0.5, "choose one above 0"),
        (1025, "at most 1024"),
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
