"""Laws of `transfer` and of an estimate's line."""

import pytest
import torch

from bdia_exp.samplers.core import CLEAN, Estimate, Level, transfer
from bdia_exp.samplers.schedules import edm

pytestmark = pytest.mark.quick

S, T, U = Level(0.3, 0.9, 7.0), Level(0.8, 0.5, 3.0), Level(0.95, 0.1, 1.0)


@pytest.fixture
def z_eps():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 3, 2, 5, generator=rng, dtype=torch.float64)


def test_transfer_composes_and_inverts(z_eps):
    z, eps = z_eps
    there = transfer(z, eps, S, T)
    torch.testing.assert_close(
        transfer(there, eps, T, U), transfer(z, eps, S, U), rtol=0, atol=1e-14
    )
    torch.testing.assert_close(transfer(there, eps, T, S), z, rtol=0, atol=1e-14)
    assert torch.equal(transfer(z, eps, S, S), z)
    assert (there - z).abs().max() > 0.1


def test_transfer_keeps_the_split(z_eps):
    x, eps = z_eps
    z = S.alpha * x + S.sigma * eps
    expected = T.alpha * x + T.sigma * eps
    torch.testing.assert_close(transfer(z, eps, S, T), expected, rtol=0, atol=1e-14)


def test_transfer_on_edm_levels_is_eulers_step(z_eps):
    z, eps = z_eps
    step = transfer(z, eps, edm(3.0), edm(2.5))
    torch.testing.assert_close(step, z + (2.5 - 3.0) * eps, rtol=0, atol=1e-15)


def test_transfer_keeps_the_dtype(z_eps):
    z, eps = z_eps.float()
    assert transfer(z, eps, S, T).dtype == torch.float32


def test_estimates_from_noise_image_and_velocity_agree(z_eps):
    x, eps = z_eps
    vp = Level(0.6, 0.8, 5.0)
    z = vp.alpha * x + vp.sigma * eps
    v = vp.alpha * eps - vp.sigma * x
    for estimate in (
        Estimate(vp, z, eps),
        Estimate.from_x(vp, z, x),
        Estimate.from_v(vp, z, v),
    ):
        torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-14)
        torch.testing.assert_close(estimate.x, x, rtol=0, atol=1e-14)
        assert torch.equal(estimate.at(vp), z)
        assert torch.equal(estimate.at(CLEAN), estimate.x)
        assert torch.equal(estimate.at(T), transfer(z, estimate.eps, vp, T))
