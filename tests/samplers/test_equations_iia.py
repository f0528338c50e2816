"""The equations of the IIA paper, as printed, and coefficients computed by an independent program.

The oracle values come from a separate implementation in float64: the density, grid and starts
below, all rows fitted. Its coefficients are the paper's; ours are 0 for the base method.
"""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from bdia_exp.models.toy import GaussianMixture
from bdia_exp.samplers import columns, iia_edm
from bdia_exp.samplers.fitted import Fit, rms
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.iia_edm import averaged
from bdia_exp.samplers.loops import multistep
from bdia_exp.samplers.schedules import edm, linear_vp
from bdia_exp.samplers.targets import Fine, Global, Local, fine_levels
from bdia_exp.samplers.weights import Given
from tests.laws import GRIDS

pytestmark = pytest.mark.quick

DENSITY = GaussianMixture(
    torch.tensor([[-0.8, 0.3], [0.5, -0.4], [0.1, 0.7]], dtype=torch.float64).reshape(3, 1, 1, 2),
    [0.15, 0.25, 0.2],
    [0.4, 0.35, 0.25],
)
MODEL, SCHEDULE = DENSITY.denoiser(), linear_vp()
GRID = karras(5, sigma_min=0.05)
PLACES = [(k + 0.5) / 16 for k in range(16)]
ANGLES = [2 * math.pi * (k * (math.sqrt(5) - 1) / 2 % 1) for k in range(16)]
RADII = [80 * math.sqrt(-2 * math.log(1 - place)) for place in PLACES]
START = torch.tensor(
    [[r * math.cos(a), r * math.sin(a)] for r, a in zip(RADII, ANGLES, strict=True)],
    dtype=torch.float64,
).reshape(16, 1, 1, 2)
TRUTH = torch.tensor(  # the first two rows
    [[0.08710604325964304, 0.36759567426152323], [-0.661910472106105, 0.2241404693706576]],
    dtype=torch.float64,
)


def edm_sampler(kind, r):
    return partial(averaged, columns=partial(kind, r=r))


ORACLES = {  # sampler, target: the RMS error at σ = 0, and the coefficients of the paper
    "basic r=0 local": (
        0.1133330322096625,
        [[1.000122469469007], [1.0029695226847264], [1.117864136640423], [1.434898395843967]],
    ),
    "basic r=0 global": (0.10613536132159372, None),
    "basic r=1 local": (
        0.042647253109690524,
        [
            [1.000122469469007],
            [0.23360563665614548, 0.7661659746745242],
            [0.2564559069066497, 0.7457849754990713],
            [1.314167255212511, 0.06264278705308884],
        ],
    ),
    "basic r=1 global": (0.038657707340798896, None),
    "advanced r=0 local": (
        0.04112904113837747,
        [
            [0.012500000242141696, 0.3473435614145112],
            [0.04338416144721689, 0.2846169205627359],
            [0.1976958884278361, 0.25601360847368376],
            [1.862331992547577, 1.2851499274253135],
        ],
    ),
    "advanced r=0 global": (0.03704565195286765, None),
    "advanced r=1 local": (
        0.04090362183334366,
        [
            [0.012500000242141696, 0.3473435614145112],
            [0.09112493147007336, 0.2449298862698857, -1.1004224872992217],
            [0.4173590624362511, 0.23587879184263488, -0.5295637370525345],
            [2.14236551946094, 1.1887081058764124, -0.10624373791731928],
        ],
    ),
    "advanced r=1 global": (0.03462596535397746, None),
    "ddim local": (0.11856416196156926, None),
    "ddim global": (0.06305043526282557, None),
    "bdia global": (
        0.07397115312201112,
        [[], [0.8053373698553596], [1.5979503863059812], [0.19399745546994], [0.18424802321901673]],
    ),
    "bdia local": (
        0.12370903148445526,
        [[], [0.46375486284355], [0.6431172054089], [0.11027483958356], [-0.00047846695730648466]],
    ),
}


@pytest.fixture(scope="module")
def fine():
    return Fine.solved(MODEL, START, fine_levels(GRID, SCHEDULE, 2000)).on(GRID)


def test_the_fine_solution_is_the_exact_one(fine):
    assert (fine[-1].flatten(1)[:2] - TRUTH).abs().max() < 2e-6


def sampler_of(name):
    kind, *more = name.split()
    if kind == "basic":
        return edm_sampler(iia_edm.slopes, int(more[0][-1])), "coefficients"
    if kind == "advanced":
        return edm_sampler(iia_edm.parts, int(more[0][-1])), "coefficients"
    if kind == "ddim":
        return partial(multistep, columns=columns.differences), "coefficients"
    return multistep, "gamma"


def paper_row(name, row, level):
    """Our coefficients as the paper's: γ_i0 = 1 + w; β_i0 = (1 + w)/σ_i and β_i1 = 1 + w."""
    if name.startswith("basic"):
        return [1 + row[0], *row[1:]]
    if name.startswith("advanced"):
        return [(1 + row[0]) / level.sigma, 1 + row[1], *row[2:]]
    return row


@pytest.mark.parametrize("name", ORACLES)
def test_iia_coefficients_and_errors_of_an_independent_program(name, fine):
    sampler, key = sampler_of(name)
    target = Local(sampler, MODEL, GRID, SCHEDULE) if "local" in name else Global(fine)
    fit = Fit(target)
    *_, end = sampler(MODEL, START, GRID, **{key: fit})
    error, rows = ORACLES[name]
    assert rms(end - fine[-1]) == pytest.approx(error, rel=5e-6)
    close = 1e-9 if "local" in name else 3e-6  # their fine solution is another one
    for ours, theirs, level in zip(fit.rows, rows or [], GRID, strict=False):
        assert paper_row(name, ours, level) == pytest.approx(theirs, rel=close)


# -- the equations as printed --------------------------------------------------------------------

LEVELS = karras(6, sigma_min=0.05)
Z = START[:4]
RNG = torch.Generator().manual_seed(5)


def draw(*shape):
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


def d(z, t):
    """d(z, t) = (z − D(z; t))/t."""
    return (z - MODEL(z, edm(t)).x) / t


def test_iia_11_14_basic():
    """z_{i+1} = z_i + Σ_k γ_ik (t_{i+1} − t_i) ½(d_{i−k} + d'_{i−k}), Euler's to σ = 0."""
    t, r = [level.sigma for level in LEVELS], 2
    gamma = [draw(min(i, r) + 1).tolist() for i in range(len(t) - 2)]
    z, slopes, expected = Z, [], []
    for i in range(len(t) - 1):
        first = d(z, t[i])
        trial = z + (t[i + 1] - t[i]) * first
        if t[i + 1] == 0:
            z = trial
        else:
            slopes.append(0.5 * (first + d(trial, t[i + 1])))
            terms = (gamma[i][k] * (t[i + 1] - t[i]) * slopes[i - k] for k in range(min(i, r) + 1))
            z = z + sum(terms)
        expected.append(z)
    ours = Given([[row[0] - 1, *row[1:]] for row in gamma] + [[]])
    sampler = edm_sampler(iia_edm.slopes, r)
    for state, wanted in zip(sampler(MODEL, Z, LEVELS, coefficients=ours), expected, strict=True):
        assert torch.allclose(state, wanted, rtol=1e-12, atol=1e-11)


def test_iia_18_19_advanced():
    """z_{i+1} = z_i + h [β_i0 (z_i − x̂_i) − β_i1 (x̂' − x̂_i)/(2 t_{i+1}) + Σ γ_ik Δ̃_{i−k}]."""
    t, r = [level.sigma for level in LEVELS], 1
    beta = [draw(2).tolist() for _ in t[2:]]
    gamma = [draw(min(i, r)).tolist() for i in range(len(t) - 2)]
    z, deltas, expected = Z, [], []
    for i in range(len(t) - 1):
        h, x = t[i + 1] - t[i], MODEL(z, edm(t[i])).x
        trial = z + h * (z - x) / t[i]
        if t[i + 1] == 0:
            z = trial
        else:
            ahead = MODEL(trial, edm(t[i + 1])).x
            delta = beta[i][0] * (z - x) - beta[i][1] * (ahead - x) / (2 * t[i + 1])
            deltas.append(delta)
            z = z + h * (delta + sum(g * deltas[i - k] for k, g in enumerate(gamma[i], 1)))
        expected.append(z)
    rows = [
        [level.sigma * b[0] - 1, b[1] - 1, *g]
        for level, b, g in zip(LEVELS, beta, gamma, strict=False)
    ]
    sampler = edm_sampler(iia_edm.parts, r)
    states = sampler(MODEL, Z, LEVELS, coefficients=Given([*rows, []]))
    for state, wanted in zip(states, expected, strict=True):
        assert torch.allclose(state, wanted, rtol=1e-11, atol=1e-10)


def test_iia_lemma_1():
    """h (d_i + d'_i)/2 = h (z_i − x̂_i)/t_i − h (x̂' − x̂_i)/(2 t_{i+1})."""
    s, t = LEVELS[1:3]
    now = MODEL(Z, s)
    step = iia_edm.Averaged(now, MODEL(now.at(t), t))
    h = t.sigma - s.sigma
    first, second = iia_edm.parts([step], t, r=0)
    assert torch.allclose(first + second, h * step.mean, rtol=1e-13, atol=1e-13)
    ahead = step.second.x - now.x
    assert torch.allclose(second, -h * ahead / (2 * t.sigma), rtol=1e-10, atol=1e-12)


def test_iia_22_23_ddim():
    """z_{i+1} = DDIM's + φ_0 (x̂_i − x̂_{i−1}) + φ_1 (ε̂_i − ε̂_{i−1}), from the second step."""
    grid = GRIDS[0](6)
    z, past, expected, phi = Z / 80, None, [], [[], *(draw(2).tolist() for _ in range(5))]
    for i, (s, t) in enumerate(pairwise(grid)):
        now = MODEL(z, s)
        x, eps = now.x, now.eps
        z = t.alpha * x + t.sigma * eps
        if past:
            z = z + phi[i][0] * (x - past[0]) + phi[i][1] * (eps - past[1])
        past = x, eps
        expected.append(z)
    sampler = partial(multistep, columns=columns.differences, coefficients=Given(phi))
    for state, wanted in zip(sampler(MODEL, Z / 80, grid), expected, strict=True):
        assert torch.allclose(state, wanted, rtol=1e-12, atol=1e-12)


def test_bdia_is_a_ray_in_the_plane_of_iia_ddim():
    """(φ_0, φ_1) = −γ (α_r, σ_r), r the past level."""
    for make in GRIDS:
        grid = make(7)
        phi = [[], *([-0.7 * r.alpha, -0.7 * r.sigma] for r in grid[:-2])]
        iia = partial(multistep, columns=columns.differences, coefficients=Given(phi))
        bdia = partial(multistep, gamma=0.7)
        for ours, theirs in zip(iia(MODEL, Z, grid), bdia(MODEL, Z, grid), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-11)
