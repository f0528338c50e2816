"""Studies of samplers, as verbs: what is measured, a table and a plot of it.

`convergence` measures orders, `exactness` round trips, `sweep` FID over γ and NFE. The first two
keep every number in a file of its own (`cells`), the last one is an experiment of `run.reproduce`.
"""

from bdia_exp.studies.inversions import exactness
from bdia_exp.studies.orders import convergence
from bdia_exp.studies.sweeps import sweep

__all__ = ["convergence", "exactness", "sweep"]
