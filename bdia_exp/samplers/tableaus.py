"""Butcher tableaus of explicit Runge-Kutta methods, as data."""

from typing import NamedTuple


class Tableau(NamedTuple):
    """Stage i is at the fraction c_i of a step and uses the slopes of the stages before it.

    Z_i = Z + h Σ_{j<i} a_ij k_j, and the step is h Σ b_i k_i. A method for an SDE with additive
    noise adds c_i W + area · H to Z_i and W to the step: W is the Brownian increment, H its
    space-time Lévy area. A last stage that only starts the next step (dopri5, tsit5,
    bogacki_shampine) has b = 0 and is left out.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    area: float = 0.0

    @property
    def c(self) -> tuple[float, ...]:
        """c_i = Σ_j a_ij; a sum that is 1 up to rounding is 1."""
        sums = map(sum, self.a)
        return tuple(1.0 if abs(c - 1) < 1e-12 else float(c) for c in sums)


TABLEAUS = {
    "euler": Tableau(((),), (1,)),
    "midpoint": Tableau(((), (1 / 2,)), (0, 1)),
    "heun": Tableau(((), (1,)), (1 / 2, 1 / 2)),
    "ralston": Tableau(((), (2 / 3,)), (1 / 4, 3 / 4)),
    "ssprk3": Tableau(((), (1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "bogacki_shampine": Tableau(((), (1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "rk4": Tableau(((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "rk38": Tableau(((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
    "dopri5": Tableau(
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    "tsit5": Tableau(
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
}
"""Methods for the ODE; their orders are 1, 2, 2, 2, 3, 3, 4, 4, 5, 5."""

STOCHASTIC = {
    "em": Tableau(((),), (1,)),
    "shark": Tableau(((), (5 / 6,)), (2 / 5, 3 / 5), area=1.0),
}
"""Methods for the SDE: Euler-Maruyama, of strong order 1, and ShARK (Foster, dos Reis and Strange,
arXiv 2210.17543), of strong order 1.5; both where the noise is additive and its scale constant."""
