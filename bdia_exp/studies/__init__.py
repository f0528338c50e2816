"""Studies of samplers, as verbs: what is measured, a table and a plot of it.

`convergence` measures orders, `exactness` round trips, `sweep` FID over γ and NFE, `edits` compares
methods on the same images. The first two keep every number in a file of its own (`cells`), `sweep`
is an experiment of `run.reproduce`, `edits` a run of `edit` for each method.
"""

from bdia_exp.studies.edits import edits
from bdia_exp.studies.inversions import exactness
from bdia_exp.studies.orders import convergence
from bdia_exp.studies.sweeps import sweep

__all__ = ["convergence", "edits", "exactness", "sweep"]
