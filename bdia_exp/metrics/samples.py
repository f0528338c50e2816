"""Metrics that need the features of every image: KID, precision and recall, Inception Score.

The estimators are torch-fidelity's, at its settings.
"""

import torch
from torch import Tensor

from bdia_exp import dist
from bdia_exp.errors import UserError

KID_SUBSET = 1000  # images in each of the 100 subsets; KID is their average
SPLITS = 10  # parts of the images; the Inception Score is their average
NEIGHBOURS = 3  # k of precision and recall


class FeatureSamples:
    """Every image's features, and logits if there are any, on all ranks.

    `update(features [B, D], logits [B, K] or None, keys [B])`; `compute()` → (features [N, D],
    logits [N, K] or None), float32 on the CPU, in the order of the keys (the images' seeds or
    positions), independent of the ranks. A rank may have no images.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def update(self, features: Tensor, logits: Tensor | None, keys: Tensor) -> None:
        self.seen.append((features.cpu(), None if logits is None else logits.cpu(), keys))

    def compute(self) -> tuple[Tensor, Tensor | None]:
        seen = [batch for rank in dist.gather(self.seen) for batch in rank]
        features, logits, keys = zip(*seen, strict=True)
        order = torch.cat(keys).argsort()
        whole = None if logits[0] is None else torch.cat(logits)[order]
        return torch.cat(features)[order], whole


def kid(found: Tensor, real: Tensor) -> dict[str, float]:
    """The kernel inception distance of features [N, D] and [M, D]: mean and spread of 100 subsets.

    Raises UserError if there are fewer than 1,000 of either.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    require_subset(min(len(found), len(real)))
    numbers = kid_features_to_metric(
        found.double(), real.double(), kid_subset_size=KID_SUBSET, verbose=False
    )
    mean, std = numbers.values()
    return {"kid": mean, "kid_std": std}


def require_subset(count: int) -> None:
    """Raises UserError if KID's subsets cannot be drawn from so many images."""
    if count < KID_SUBSET:
        raise UserError(f"KID draws subsets of {KID_SUBSET:,} images; there are {count:,}")


def precision_recall(found: Tensor, real: Tensor) -> dict[str, float]:
    """Precision: the share of images near the real ones; recall: of real ones near these; k = 3.

    Raises UserError if there are 3 images or fewer in one of the sets.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    if (fewest := min(len(found), len(real))) <= NEIGHBOURS:
        raise UserError(f"precision and recall need more than {NEIGHBOURS} images, not {fewest}")
    numbers = prc_features_to_metric(
        found,
        real,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=2000,  # distances to 50,000 images: 0.4 GB
        save_cpu_ram=True,
        verbose=False,
    )
    return {name: numbers[name] for name in ("precision", "recall")}


def inception_score(logits: Tensor) -> dict[str, float]:
    """exp of the mean KL of p(y|x) from p(y): mean and spread of ten splits of logits [N, K].

    Raises UserError if a split would be empty.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if len(logits) < SPLITS:
        raise UserError(f"the Inception Score needs {SPLITS} images or more, not {len(logits)}")
    mean, std = isc_features_to_metric(logits, splits=SPLITS).values()
    return {"isc": mean, "isc_std": std}
