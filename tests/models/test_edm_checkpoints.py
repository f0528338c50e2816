"""EDM's pickles as models: what a network states about itself is kept to."""

from itertools import pairwise

import pytest
import torch

from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.edm import load
from bdia_exp.samplers.core import CLEAN
from bdia_exp.samplers.grids import arc, karras
from bdia_exp.samplers.schedules import linear_vp
from tests.sources.pickled import SONG, edm, network, write

RANGES = [(0.0, float("inf")), (0.02, 100.0), (0.002, 50.0), (0.1, 7.0), (1e-4, 200.0)]


def program(net, latents, labels, steps, least, most, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """EDM's program (Heun's method), with its numbers in EDM's words; float64."""
    low, high = max(sigma_min, least), min(sigma_max, most)
    i = torch.arange(steps, dtype=torch.float64)
    t = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)])
    x = latents.double() * t[0]
    for i, (now, then) in enumerate(pairwise(t)):
        d = (x - net(x, now, labels).double()) / now
        there = x + (then - now) * d
        if i < steps - 1:
            other = (there - net(there, then, labels).double()) / then
            there = x + (then - now) * (d / 2 + other / 2)
        x = there
    return x


def job(path, *overrides):
    asked = settings("sample", ["model=edm", f"model.checkpoint={path}", *overrides])
    return Job.of(asked, "cpu")


@pytest.mark.parametrize(("least", "most"), RANGES)
def test_samples_are_those_of_edm_s_program_for_the_network_s_own_range(tmp_path, least, most):
    path = write(tmp_path, edm(SONG, sigma_min=least, sigma_max=most))
    ours = job(path, "sampler=edm", "nfe=9")
    assert (ours.grid[0].sigma, ours.grid[-2].sigma) == pytest.approx(
        (min(80.0, most), max(0.002, least)), rel=1e-12
    )
    noise, labels = ours.draw([0, 1])
    *_, x = ours.sampler(ours.model.denoiser(labels), noise, ours.grid)
    latents = noise / ours.grid[0].sigma
    onehot = torch.eye(SONG["label_dim"])[labels]
    with torch.inference_mode():
        theirs = program(network(SONG), latents, onehot, 5, least, most)
    torch.testing.assert_close(x, theirs, rtol=1e-5, atol=1e-5)


def test_the_published_range_changes_nothing():
    assert karras(18, linear_vp()) == karras(18)


def test_the_arc_keeps_to_the_range_and_other_grids_are_refused_beyond_it(tmp_path):
    path = write(tmp_path, edm(SONG, sigma_min=0.02, sigma_max=50.0))
    schedule = load(str(path)).schedule
    ends = arc(4, schedule)
    assert (ends[0].rho, ends[-1].rho) == pytest.approx((50, 0.02))
    assert arc(4, schedule, sigma_min=0.5, sigma_max=2.0)[-1].rho == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"supports sigma from 0\.02 to 50, not from 60 to 80"):
        karras(4, schedule, sigma_min=60.0)
    job(path, "sampler=ddim", "grid=arc", "nfe=4")
    for grid in ("uniform", "quad_full"):
        with pytest.raises(UserError, match=r"this network supports 0\.02 to 50"):
            job(path, "sampler=ddim", f"grid={grid}", "nfe=4")


def test_the_clean_level_is_served_within_the_range(tmp_path):
    path = write(tmp_path, edm(SONG, sigma_min=0.5))
    model, net = load(str(path)), network(SONG)
    z, labels = torch.randn(2, 1, 8, 8).double(), torch.tensor([0, 2])
    eps = model.denoiser(labels)(z, CLEAN).eps
    expected = (z - net(z, 0.5, torch.eye(3)[labels]).double()) / 0.5
    torch.testing.assert_close(eps, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changed", [{"sigma_min": 0.02}, {"sigma_max": 9.0}, {"sigma_data": 1.0}])
def test_a_promised_network_has_the_published_range(tmp_path, changed):
    """So what a configuration says of a network, without its file, is true of it."""
    path = write(tmp_path, edm(SONG, **changed))
    promised = {key: SONG[key] for key in ("img_resolution", "label_dim")}
    with pytest.raises(UserError, match=f"its {next(iter(changed))} is"):
        load(str(path), network=promised)
