"""Sums over any number of images, computed in one pass.

Import this module only where it is used: torchmetrics takes seconds to import.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from bdia_exp.errors import UserError
from bdia_exp.metrics.moments import Statistics


class FeatureMoments(Metric):
    """Count, Σ f and Σ f fᵀ of features, summed in float64 [EDM fid].

    `update(features [B, dim])` adds a batch; `compute()` returns the `Statistics` of all batches
    on all ranks, and raises UserError for fewer than two images or features that are not finite.
    Memory is dim² numbers, for any number of images.

    Sums are about zero, not about the mean, so they can be added over ranks. The rounding error of
    the covariance grows by (mean/std)²: it is below 1e-9 for a mean of 1000 std in float64.
    """

    higher_is_better = None
    is_differentiable = False
    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        zeros = torch.zeros(dim, dtype=torch.float64)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("outer", zeros.outer(zeros), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        f = features.detach().to(self.outer)
        self.count += len(f)
        self.total += f.sum(0)
        self.outer += f.T @ f

    def compute(self) -> Statistics:
        n = int(self.count)
        if n < 2:
            raise UserError(f"a covariance needs at least 2 images; there are {n}")
        mean = self.total.cpu().numpy() / n
        cov = (self.outer.cpu().numpy() - n * np.outer(mean, mean)) / (n - 1)
        if not np.isfinite(cov).all():
            raise UserError("the features hold NaN or infinity: the images or the network are bad")
        return Statistics(mean, cov, n)
