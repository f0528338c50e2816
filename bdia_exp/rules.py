"""Rules: from the trail of evaluations to the next state.

A rule is a function of (trail, level). It may look back as far as it likes; the loops of
`bdia_exp.solvers` keep the trail.
"""

from collections.abc import Sequence

from torch import Tensor

from bdia_exp.core import Estimate, Level


def ddim(trail: Sequence[Estimate], t: Level) -> Tensor:
    """DDIM: along the newest estimate's line [BDIA 6-7]. On EDM levels this is Euler's step."""
    return trail[-1].at(t)
