"""Regions of stability that are known in closed form, and the files of the script."""

import json
import math
import sys

import pytest
import torch
from PIL import Image

from tests.scripts.test_scripts import script

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def stability():
    return script("stability")


def test_ddim_s_region_is_euler_s_disc(stability):
    found = stability.measured(stability.METHODS["DDIM"])
    assert found["area"] == pytest.approx(math.pi, abs=0.02)
    assert found["leftmost_real"] == pytest.approx(-2, abs=2e-3)
    assert found["imaginary"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["BDIA γ = 1", "O-BELM (leapfrog)", "CBDIA 0, 1"])
def test_leapfrog_is_stable_on_a_part_of_the_imaginary_axis_only(stability, name):
    found = stability.measured(stability.METHODS[name])
    assert (found["area"], found["leftmost_real"]) == (0, 0)
    assert found["imaginary"] == pytest.approx(1, abs=1e-3)


def test_bdia_s_region_ends_where_its_characteristic_polynomial_says(stability):
    """r² − (1 − γ + (1 + γ) λ) r − γ = 0 has the root r = −1 at λ = 2 (γ − 1)/(1 + γ)."""
    for gamma in (0.96, 0.5, 0.25):
        found = stability.measured(stability.METHODS[f"BDIA γ = {gamma}"])
        assert found["leftmost_real"] == pytest.approx(2 * (gamma - 1) / (1 + gamma), rel=2e-3)


def test_rex_s_region_has_the_width_of_one_minus_zeta(stability):
    for tableau in ("euler", "midpoint", "rk4"):
        found = stability.measured(stability.METHODS[f"Rex {tableau}, ζ = 0.999"])
        assert found["leftmost_real"] == pytest.approx(-0.001, rel=0.02)


def test_the_radius_at_zero_is_one(stability):
    zero = torch.zeros(1, dtype=torch.complex128)
    for step in stability.METHODS.values():
        assert float(stability.radius(step, zero)) == pytest.approx(1)


def test_it_writes_a_figure_and_the_numbers(stability, tmp_path, monkeypatch, capsys):
    kept = {name: stability.METHODS[name] for name in ("DDIM", "Rex rk4, ζ = 1")}
    monkeypatch.setattr(stability, "METHODS", kept)
    monkeypatch.setattr(sys, "argv", ["stability.py", str(tmp_path)])
    stability.main()
    found = json.loads((tmp_path / "stability.json").read_text())["methods"]
    assert list(found) == list(kept)
    assert found["Rex rk4, ζ = 1"]["evaluations"] == 8
    assert Image.open(tmp_path / "stability.png").width > 800
    assert "area" in capsys.readouterr().out
