"""Rex as printed, its tableaus' order conditions, and its law: what a step does, `undo` undoes.

The rules are those of paper.py.
"""

import math
from functools import partial
from itertools import combinations_with_replacement

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.samplers.core import CLEAN, Estimate, Level
from bdia_exp.samplers.coupling import CBDIA
from bdia_exp.samplers.loops import coupled, rex
from bdia_exp.samplers.rex import Rex
from bdia_exp.samplers.schedules import rectified
from bdia_exp.samplers.tableaus import STOCHASTIC, TABLEAUS
from tests.laws import GAUSSIAN, GRIDS, MIXTURE, end, states, vp_arc
from tests.samplers.paper import NETWORK, VE, VP, Z_N, N, largest, same

pytestmark = pytest.mark.quick

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS)
both_predictions = pytest.mark.parametrize("predicts", ["noise", "data"])

# --- The equations ---

PRINTED = {  # c, a, b
    "euler": ([0], [[]], [1]),
    "midpoint": ([0, 1 / 2], [[], [1 / 2]], [0, 1]),
    "heun": ([0, 1], [[], [1]], [1 / 2, 1 / 2]),
    "rk4": (
        [0, 1 / 2, 1 / 2, 1],
        [[], [1 / 2], [0, 1 / 2], [0, 0, 1]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
    ),
}


def clock(level, predicts):
    alpha, sigma = level[:2]
    return sigma / alpha if predicts == "noise" else alpha / sigma


def weight(level, predicts):
    return level.alpha if predicts == "noise" else level.sigma


def between(s, t, c, predicts):
    """The level of the kind of s and t at the fraction c of their clocks."""
    time = clock(s, predicts) + c * (clock(t, predicts) - clock(s, predicts))
    rho = time if predicts == "noise" else 1 / time
    alpha = 1.0 if s.alpha == t.alpha == 1 else 1 / math.sqrt(1 + rho**2)
    return Level(alpha, alpha * rho, rho)


def printed_psi(u, s, t, name, predicts):
    c, a, b = PRINTED[name]
    h, k = clock(t, predicts) - clock(s, predicts), []
    for i in range(len(c)):
        level = between(s, t, c[i], predicts)
        z_i = u / weight(s, predicts) + h * sum(a[i][j] * k[j] for j in range(i))
        state = weight(level, predicts) * z_i
        eps = NETWORK(state, level).eps
        k.append(eps if predicts == "noise" else (state - level.sigma * eps) / level.alpha)
    return h * sum(b[i] * k[i] for i in range(len(c)))


def printed_forward(x, x_hat, s, t, name, predicts, zeta):
    w_s, w_t = weight(s, predicts), weight(t, predicts)
    first = (w_t / w_s) * (zeta * x + (1 - zeta) * x_hat)
    first = first + w_t * printed_psi(x_hat, s, t, name, predicts)
    return first, (w_t / w_s) * x_hat - w_t * printed_psi(first, t, s, name, predicts)


def printed_backward(x, x_hat, s, t, name, predicts, zeta):
    w_s, w_t = weight(s, predicts), weight(t, predicts)
    second = (w_s / w_t) * x_hat + w_s * printed_psi(x, t, s, name, predicts)
    first = (w_s / w_t) * x / zeta + (1 - 1 / zeta) * second
    return first - (w_s / zeta) * printed_psi(second, s, t, name, predicts), second


@pytest.mark.parametrize("zeta", [0.999, 0.7, 1.0])
@both_predictions
@pytest.mark.parametrize("tableau", PRINTED)
def test_rex_forward_and_backward(paper, tableau, predicts, zeta):
    coupling, pair = Rex(tableau, predicts, zeta), (Z_N, Z_N.flip(0))
    for i in (N, 4, 2):
        s, t = paper.level(i), paper.level(i - 1)
        there = printed_forward(*pair, s, t, tableau, predicts, zeta)
        same(coupling.step(NETWORK, pair, s, t, N - i), there, atol=1e-12)
        back = printed_backward(*pair, s, t, tableau, predicts, zeta)
        same(coupling.undo(NETWORK, pair, s, t, N - i), back, atol=1e-12)


def test_the_loop_starts_from_two_equal_states_and_yields_the_first(paper):
    pair = Z_N, Z_N
    for i, z in zip(range(N, 1, -1), rex(NETWORK, Z_N, paper.grid, zeta=0.9), strict=False):
        step = paper.level(i), paper.level(i - 1), "euler", "noise", 0.9
        pair = printed_forward(*pair, *step)
        same(z, pair[0], atol=1e-12)


@pytest.mark.parametrize(
    "coupling", [Rex("rk4", "noise", 0.9), Rex("rk4", "data", 0.9), Rex("euler", "data", 0.9, "em")]
)
def test_a_step_to_a_clean_level_is_euler_s_with_noise_prediction(paper, coupling):
    s, pair = paper.level(1), (Z_N, Z_N.flip(0))
    ddim = Rex("euler", "noise", 0.9).step(NETWORK, pair, s, CLEAN, 0)
    same(ddim, printed_forward(*pair, s, CLEAN, "euler", "noise", 0.9))
    same(coupling.step(NETWORK, pair, s, CLEAN, 0), ddim, atol=0)
    same(coupling.undo(NETWORK, ddim, s, CLEAN, 0), pair, atol=1e-13)


def test_rex_with_euler_at_zeta_one_is_cbdia_at_1_0_where_alpha_is_one():
    """[BDIA 58-59]; on VP levels the two differ, because CBDIA's states are not divided by α."""

    def pairs(grid, coupling):
        return list(coupled(NETWORK, (Z_N, Z_N), grid, coupling))

    for ours, cbdia in zip(pairs(VE, Rex(zeta=1.0)), pairs(VE, CBDIA(1.0, 0.0)), strict=True):
        same(ours, cbdia)
    assert largest(pairs(VP, Rex(zeta=1.0))[-1], pairs(VP, CBDIA(1.0, 0.0))[-1]) > 1e-3


# --- The tableaus ---

ORDERS = dict(zip(TABLEAUS, (1, 2, 2, 2, 3, 3, 4, 4, 5, 5), strict=True))


def trees(order):
    """The rooted trees with this number of nodes; a tree is the sorted tuple of its branches."""
    if order == 1:
        return {()}
    found = set()
    for split in partitions(order - 1):
        branches = [()]
        for size in sorted(set(split)):
            chosen = combinations_with_replacement(sorted(trees(size), key=str), split.count(size))
            branches = [old + new for new in chosen for old in branches]
        found |= {tuple(sorted(tree, key=str)) for tree in branches}
    return found


def partitions(total, most=None):
    if total == 0:
        yield ()
    for first in range(min(total, most or total), 0, -1):
        for rest in partitions(total - first, first):
            yield (first, *rest)


def nodes(tree):
    return 1 + sum(map(nodes, tree))


def density(tree):
    return nodes(tree) * math.prod(map(density, tree))


def elementary_weights(tree, tableau):
    """Φ_i of every stage: the product over the branches of Σ_j a_ij Φ_j(branch)."""
    inner = [elementary_weights(branch, tableau) for branch in tree]
    return [
        math.prod(sum(a * phi for a, phi in zip(row, inside, strict=False)) for inside in inner)
        for row in tableau.a
    ]


def unmet(name, order):
    """The largest |Σ b_i Φ_i − 1/γ| of the trees of an order."""
    tableau = TABLEAUS[name]
    return max(
        abs(
            sum(
                b * phi for b, phi in zip(tableau.b, elementary_weights(tree, tableau), strict=True)
            )
            - 1 / density(tree)
        )
        for tree in trees(order)
    )


def test_the_number_of_trees_is_the_known_one():
    assert [len(trees(order)) for order in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@every_tableau
def test_a_tableau_meets_all_conditions_of_its_order_and_not_of_the_next(tableau):
    assert all(unmet(tableau, order) < 2e-14 for order in range(1, ORDERS[tableau] + 1))
    assert unmet(tableau, ORDERS[tableau] + 1) > 1e-5


@every_tableau
def test_every_row_has_the_slopes_of_the_stages_before_it(tableau):
    a, b, _ = TABLEAUS[tableau]
    assert [len(row) for row in a] == list(range(len(b)))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)
@pytest.mark.parametrize("tableau", ["dopri5", "tsit5"])
def test_the_fifth_order_is_measured(tableau, grid):
    def error(steps):
        levels = grid(steps)
        z = states(GAUSSIAN, levels[0], 16)
        last = end(partial(rex, tableau=tableau), GAUSSIAN.denoiser(), z, levels)
        return float((last - GAUSSIAN.flow(z, levels[0], levels[-1])).abs().max())

    assert 4.7 < math.log2(error(64) / error(128)) < 5.3


# --- Undoing ---


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)
@both_predictions
@every_tableau
def test_a_round_trip_returns_both_states(tableau, predicts, grid, clean):
    """To rounding, which data prediction enlarges by σ_N/σ_1: its states are divided by σ."""
    levels, coupling = grid(10, clean=clean), Rex(tableau, predicts)
    model, z = MIXTURE.denoiser(), states(MIXTURE, levels[0])
    start = z, z + 1e-3
    *_, there = coupled(model, start, levels, coupling)
    *_, back = coupled(model, there, levels, coupling, undo=True)
    assert largest(back, start) < (1e-12 if predicts == "noise" else 1e-9)


def test_undoing_enlarges_a_difference_of_the_states_by_one_over_zeta():
    def no_noise(z, level):
        return Estimate(level, z, torch.zeros_like(z))

    levels, pair = VE[:-1], (torch.ones(1), torch.zeros(1))
    *_, (x, y) = coupled(no_noise, pair, levels, Rex(zeta=0.8), undo=True)
    assert float(x - y) == pytest.approx(0.8 ** -(len(levels) - 1))
    assert Rex(zeta=0.8).amplification == 1 / 0.8


def test_straight_levels_are_levels_too():
    """Rectified flow's levels (1 − t, t): stages between them are asked at EDM's levels."""
    grid = tuple(map(rectified, torch.linspace(0.95, 0.05, 129).tolist()))
    z = states(GAUSSIAN, grid[0])
    last = end(partial(rex, tableau="rk4"), GAUSSIAN.denoiser(), z, grid)
    assert (last - GAUSSIAN.flow(z, grid[0], grid[-1])).abs().max() < 1e-6


# --- What is refused ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tableau": "eulr"}, "sampler.tableau='eulr' is unknown; did you mean 'euler'"),
        ({"predicts": "dta"}, "sampler.predicts='dta' is unknown; did you mean 'data'"),
        ({"sde": "sharc"}, "sampler.sde='sharc' is unknown; did you mean 'shark'"),
        ({"sde": "em", "tableau": "rk4"}, "sampler.sde=em has a tableau of its own"),
        ({"sde": "em"}, "sampler.sde=em needs sampler.predicts=data"),
        *(({"zeta": zeta}, f"sampler.zeta={zeta} must be") for zeta in (0, -1.0, 1.1, math.nan)),
    ],
)
def test_wrong_settings_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Rex(**options)


def test_pure_noise_is_refused():
    grid = Level(0.0, 1.0, 1.0), *vp_arc(3)
    with pytest.raises(UserError, match="choose a grid that starts with alpha above 0"):
        end(rex, NETWORK, Z_N, grid)


def test_stochastic_tableaus_are_consistent():
    for tableau in STOCHASTIC.values():
        assert sum(tableau.b) == pytest.approx(1)
