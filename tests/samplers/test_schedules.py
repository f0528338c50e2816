"""Schedules: the levels behind a network's times."""

import math

import numpy as np
import pytest

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import CLEAN, Level
from bdia_exp.samplers.schedules import DiscreteVP, edm, linear_vp, scaled_linear_vp

pytestmark = pytest.mark.quick


def test_a_discrete_level_is_root_abar_and_its_complement():
    schedule = DiscreteVP([0.99, 0.64, 0.25])
    assert len(schedule) == 3
    assert schedule(1) == pytest.approx((0.8, 0.6, 1.0))
    assert schedule(1, shift=1) == pytest.approx((0.5, math.sqrt(0.75), 1.0))


def test_before_the_table_lies_the_clean_level():
    schedule = DiscreteVP([0.99, 0.64])
    assert schedule(-1) == CLEAN
    assert schedule(-1, shift=1) == Level(math.sqrt(0.99), math.sqrt(1 - 0.99), 0.0)


def test_linear_vp_is_the_product_of_one_minus_beta():
    betas = np.linspace(1e-4, 0.02, 1000).astype(np.float32).astype(np.float64)
    schedule = linear_vp()
    np.testing.assert_allclose(schedule.abar, np.cumprod(1 - betas), rtol=1e-12)
    assert schedule.abar[0] == pytest.approx(0.9999, abs=1e-9)
    assert schedule.abar[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    assert sorted(schedule.abar, reverse=True) == list(schedule.abar)


def test_linear_vp_rounds_beta_to_float32():
    assert 1 - linear_vp().abar[0] == pytest.approx(float(np.float32(1e-4)), rel=1e-11)
    assert 1 - linear_vp().abar[0] != pytest.approx(1e-4, rel=1e-9)


def test_edm_levels_have_alpha_one_and_time_sigma():
    assert edm(2.5) == Level(1.0, 2.5, 2.5)


def test_reading_past_the_table_is_said():
    with pytest.raises(UserError, match="use fewer steps"):
        linear_vp()(999, shift=1)


def test_scaled_linear_vp_is_stable_diffusion_s():
    abar = scaled_linear_vp().abar
    found = [abar[k] for k in (0, 1, 101, 901, 981, 999)]
    expected = [0.99915, 0.998296, 0.892981, 0.0140049, 0.0057755, 0.0046601]
    assert found == pytest.approx(expected, rel=2e-5)


def test_between_meets_the_table_and_is_refused_outside():
    schedule = scaled_linear_vp()
    for k in (0, 1, 500, 999):
        assert schedule.between(k) == pytest.approx(schedule(k), rel=1e-12)
    for time in (-0.5, 999.5):
        with pytest.raises(UserError, match="has times 0 to 999"):
            schedule.between(time)
