"""The exact densities are what they say."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from bdia_exp.cli.configs import call
from bdia_exp.errors import UserError
from bdia_exp.models import toy
from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.samplers.core import CLEAN, Level

LEVELS = [Level(1.0, 3.0, 3.0), Level(0.6, 0.8, 5.0), CLEAN]
RNG = torch.Generator().manual_seed(0)
MEANS, STDS = torch.randn(3, 2, generator=RNG), torch.tensor([0.3, 0.6, 1.2])
WEIGHTS = [1.0, 3.0, 2.0]
MIXTURE = GaussianMixture(MEANS, STDS, WEIGHTS)
Z = torch.randn(16, 2, generator=RNG, dtype=torch.float64)


@pytest.mark.parametrize("level", LEVELS)
def test_density_and_score(level):
    std = ((level.alpha * STDS.double()) ** 2 + level.sigma**2).sqrt()[:, None].expand(3, 2)
    parts = Independent(Normal(level.alpha * MEANS.double(), std), 1)
    reference = MixtureSameFamily(Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)), parts)
    z = Z.clone().requires_grad_()
    log_density = reference.log_prob(z)
    (score,) = torch.autograd.grad(log_density.sum(), z)
    torch.testing.assert_close(MIXTURE.log_density(Z, level), log_density.detach())
    torch.testing.assert_close(MIXTURE.score(Z, level), score, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS[:2])
def test_the_denoiser_is_the_mean_of_the_data_given_the_state(level):
    """Against sums over a fine grid of clean points in one dimension."""
    mixture = GaussianMixture([[-1.0], [2.0]], [0.4, 0.7], [1.0, 2.0])
    x = torch.linspace(-8, 10, 20_001, dtype=torch.float64)
    z = torch.tensor([[-2.0], [0.3], [1.5]], dtype=torch.float64)
    prior = mixture.log_density(x[:, None], CLEAN).exp()
    joint = prior * torch.exp(-0.5 * ((z - level.alpha * x) / level.sigma) ** 2)
    expected = (joint * x).sum(1) / joint.sum(1)
    torch.testing.assert_close(mixture.denoiser()(z, level).x[:, 0], expected)


def test_at_sigma_zero_the_state_is_the_image():
    estimate = MIXTURE.denoiser()(Z, CLEAN)
    assert torch.equal(estimate.x, Z)
    assert torch.equal(estimate.eps, torch.zeros_like(Z))


@pytest.mark.parametrize("level", LEVELS)
def test_samples_have_the_mixture_s_moments(level):
    drawn = MIXTURE.sample(50_000, level, generator=torch.Generator().manual_seed(2))
    shares = torch.tensor(WEIGHTS).double()[:, None] / sum(WEIGHTS)
    mean = (shares * MEANS).sum(0)
    square = (shares * (STDS.double()[:, None] ** 2 + MEANS**2)).sum(0)
    std = (level.alpha**2 * (square - mean**2) + level.sigma**2).sqrt()
    assert (drawn.mean(0) - level.alpha * mean).abs().max() < 0.05
    assert (drawn.std(0) / std - 1).abs().max() < 0.02


def test_images_are_flattened_and_keep_their_shape_and_dtype():
    flat = GaussianMixture(MEANS.repeat(1, 6), STDS)
    images = GaussianMixture(MEANS.repeat(1, 6).reshape(3, 3, 2, 2), STDS)
    z, level = torch.randn(4, 3, 2, 2, generator=RNG), LEVELS[1]
    estimate = images.denoiser()(z, level)
    assert estimate.eps.shape == z.shape
    assert estimate.eps.dtype == torch.float32
    torch.testing.assert_close(
        estimate.eps.double().flatten(1),
        flat.denoiser()(z.double().flatten(1), level).eps,
        rtol=1e-5,
        atol=1e-6,
    )
    assert images.sample(5).shape == (5, 3, 2, 2)


def test_the_flow_of_a_gaussian_composes_and_carries_its_density():
    data = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0]))
    a, b, c = LEVELS[0], Level(1.0, 0.4, 0.4), CLEAN
    z = data.sample(100_000, a, generator=torch.Generator().manual_seed(3))
    x = data.flow(z, a, c)
    torch.testing.assert_close(data.flow(data.flow(z, a, b), b, c), x)
    torch.testing.assert_close(data.flow(x, c, a), z)
    assert (x.mean(0) - torch.tensor([1.0, -2.0])).abs().max() < 0.03
    assert (x.std(0) / torch.tensor([0.5, 2.0]) - 1).abs().max() < 0.02


@pytest.mark.parametrize("bad", [{"stds": 0.0}, {"stds": 1.0, "weights": [1.0, 0.0, 1.0]}])
def test_a_density_must_have_width_and_weight(bad):
    with pytest.raises(ValueError, match="positive"):
        GaussianMixture(MEANS, **bad)


def test_toy_images_take_every_key_of_a_network(tmp_path):
    how = ["compile=default", "graphs=auto", "tf32=true", "dtype=bfloat16"]
    words = ["model=toy", "images=2", "nfe=3", "device=cpu", *how, f"out={tmp_path / 'run'}"]
    assert call("sample", words)["complete"]
    with pytest.raises(UserError, match="compile='x' is unknown"):
        toy.load("random:0", compile="x")
