"""A score: FID and other metrics of images that are given in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bdia_exp import dist
from bdia_exp.errors import UserError, brief, nearest
from bdia_exp.metrics.clip import Clip
from bdia_exp.metrics.features import Extractor, label_accuracy
from bdia_exp.metrics.frechet import (
    BLOCKS,
    frechet_distance,
    frechet_distances,
    rank,
    require_enough,
)
from bdia_exp.metrics.garments import JudgesPrompts, shares_of
from bdia_exp.metrics.measured import Known, Measured
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.resizing import squares
from bdia_exp.metrics.samples import (
    FeatureSamples,
    inception_score,
    kid,
    precision_recall,
    require_subset,
)

METRICS = ("fid", "kid", "prc", "isc", "clip", "prompt")
"""fid always; kid and prc (precision, recall) need the features of every reference image; isc
(Inception Score) needs logits; clip (CLIP score) needs a CLIP model and the images' prompts; prompt
(the shares of images with the class and the colour of their prompts) needs features=garments."""


class Score:
    """Extracts the features of images once, for all metrics. The images are not kept.

    `keep` keeps every image's features; kid, prc and isc imply it. `blocks` divides the images by
    their keys for the interval of the FID; 1 is for a reference. With `resize`, the images are
    first made `squares` of this many pixels. `clip` is the place of the CLIP model for the metric
    clip. A `Known` extractor and CLIP model are enough to `add` what was measured before. Under
    torchrun every rank updates with its own images and all ranks get the same result.

    Raises UserError for an unknown metric, or if the reference was made with other features or at
    another size, or lacks what a metric needs.
    """

    def __init__(
        self,
        extractor: Extractor,
        reference: Statistics | None,
        metrics: Sequence[str] = ("fid",),
        *,
        keep: bool = False,
        blocks: int = BLOCKS,
        resize: int | None = None,
        clip: str | Known | None = None,
    ):
        from torchmetrics import MeanMetric

        from bdia_exp.metrics.sums import ADDED, AsAsked, FeatureMoments

        for metric in metrics:
            if not isinstance(metric, str) or metric not in METRICS:
                raise UserError(f"metrics={metric!r} is unknown{nearest(str(metric), METRICS)}")
        if "isc" in metrics and not extractor.has_logits:
            raise UserError(
                f"metrics: isc needs logits, which features={extractor.name} lacks with these "
                "weights; use features.weights=torch-fidelity and features.dim=2048"
            )
        if ("clip" in metrics) != bool(clip):
            raise UserError(
                "metrics: clip needs clip=, the folder of a CLIP model or hub:ORG/NAME@REVISION"
                if "clip" in metrics
                else f"clip={clip} is for metrics=[fid,clip]: add it there, or leave clip= out"
            )
        if "prompt" in metrics and not isinstance(extractor, JudgesPrompts):
            raise UserError(
                f"metrics: prompt needs features=garments, which features={extractor.name} are not"
            )
        self.extractor, self.metrics, self.resize = extractor, metrics, resize
        self.reference: Statistics | None = None
        if reference is not None:
            self.compare_with(reference)
        self.note = extractor.note + (f"; images resized to {resize} pixels" if resize else "")
        # The sums are on the extractor's device, where NCCL adds them over the ranks.
        self.moments = FeatureMoments(extractor.dim, blocks).to(extractor.device)
        self.samples = FeatureSamples() if keep or {"kid", "prc", "isc"} & {*metrics} else None
        self.labels: set[int] = set()  # the smallest and the largest that were given
        self.accuracy = None
        if extractor.classes:
            self.accuracy = label_accuracy(extractor.classes).to(extractor.device)
        self.as_asked = AsAsked(blocks).to(extractor.device) if "prompt" in metrics else None
        self.clip = Clip(clip, extractor.device) if isinstance(clip, str) else clip
        mean = MeanMetric("error", **ADDED)
        self.clip_score = mean.set_dtype(torch.float64).to(extractor.device)

    def compare_with(self, reference: Statistics) -> None:
        """Scores against this reference. Raises UserError as the constructor does."""
        _require_same_features(self.extractor, reference)
        _require_same_size(self.resize, reference)
        if reference.features is None and {"kid", "prc"} & {*self.metrics}:
            raise UserError(
                "metrics: kid and prc compare with the features of every reference image, "
                "which reference= does not hold: make it with `bdia-exp reference keep=true`, "
                "or give the images themselves"
            )
        if reference.count is not None and reference.count <= reference.dim:
            raise UserError(
                f"reference= was made of {reference.count} images: FID in {reference.dim} "
                f"dimensions needs at least {reference.dim + 1}"
            )
        self.reference = reference

    def require_enough(self, count: int) -> None:
        """Raises UserError if `count` images, or those of the reference, are too few."""
        require_enough(count, self.extractor.dim)
        if self.reference is not None and self.reference.features is not None:
            count = min(count, len(self.reference.features))
        if "kid" in self.metrics:
            require_subset(count)

    def require_prompts(self, given: bool) -> None:
        """Raises UserError if the images will have no prompts and a metric needs them."""
        needs = [metric for metric in ("clip", "prompt") if metric in self.metrics]
        if needs and not given:
            raise UserError(
                f"metrics: {needs[0]} compares images with their prompts, and these have none: "
                f"leave {needs[0]} out, or choose a text-to-image model"
            )

    def update(
        self,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | None,
        keys: Sequence[int],
        prompts: Sequence[str] | None = None,
    ) -> None:
        """Adds a batch. images: uint8 [B, C, H, W], or B of any sizes [C, H, W] with `resize`;
        labels: their classes, int64 [B], or None; keys: their seeds or positions; prompts: their
        texts, for clip, which sees the images before they are resized."""
        self.add(self.measure(images, prompts), labels, keys)

    def measure(
        self, images: Tensor | Sequence[Tensor], prompts: Sequence[str] | None = None
    ) -> Measured:
        """All that the metrics need of these images; arguments as of `update`."""
        self.require_prompts(prompts is not None)
        seen = squares(images, self.resize) if self.resize else images
        assert isinstance(seen, Tensor)
        features, logits = self.extractor(seen)
        pairs = None
        if self.clip and prompts is not None:
            pairs = self.clip(images, prompts)
        obeyed = None
        if self.as_asked is not None:
            assert isinstance(self.extractor, JudgesPrompts)
            assert logits is not None
            assert prompts is not None
            obeyed = self.extractor.obeyed(seen, logits, prompts)
        return Measured(features, logits, pairs, obeyed)

    def add(self, measured: Measured, labels: Tensor | None, keys: Sequence[int]) -> None:
        """Adds what was measured of a batch; other arguments as of `update`."""
        features, logits, pairs, obeyed = measured
        self.moments.update(features, keys)
        if self.samples is not None:
            self.samples.update(features, logits, torch.tensor(keys))
        if self.accuracy is not None and logits is not None and labels is not None:
            given = self.labels | {*labels.tolist()}
            self.labels = {min(given), max(given)}
            if self._are_classes(self.labels):
                self.accuracy.update(logits, labels.to(logits.device))
        if pairs is not None:
            self.clip_score.update(pairs)
        if self.as_asked is not None and obeyed is not None:
            self.as_asked.update(obeyed, keys)

    def statistics(self) -> Statistics:
        """Statistics to use as a reference: moments over all ranks, and the features if kept."""
        found = self.moments.compute()
        if self.samples is not None:
            found.features = self.samples.compute()[0].numpy()
        found.meta = {"features": self.extractor.name, "sha256": self.extractor.sha256}
        found.meta["resize"] = self.resize
        return found

    def result(self) -> dict[str, Any]:
        """The numbers, as stored in a record. Raises UserError if there are too few images."""
        if self.reference is None:
            raise UserError("give reference= to score against")
        found = self.moments.compute()
        numbers: dict[str, Any] = {
            "fid": frechet_distance(found, self.reference),
            "images": found.count,
            "features": self.extractor.name,
            "features_sha256": self.extractor.sha256,
            "comparable_to_inception": self.extractor.comparable_to_inception,
            "note": self.note,
            "resize": self.resize,
        }
        least, most = self.moments.sizes()
        even = 2 * least >= most  # unequal blocks, as of every 20th seed, give no interval
        if even and found.count and found.count - most > found.dim + 1:
            parts = frechet_distances(self.moments.without_blocks(), self.reference)
            numbers["fid_without_block"] = parts
        if self.samples is not None:
            features, logits = self.samples.compute()
            if self.reference.features is not None:
                real = torch.from_numpy(self.reference.features)
                numbers |= kid(features, real) if "kid" in self.metrics else {}
                numbers |= precision_recall(features, real) if "prc" in self.metrics else {}
            if "isc" in self.metrics and logits is not None:
                numbers |= inception_score(logits)
        warnings = []
        labels = {label for rank in dist.gather(self.labels) for label in rank}
        if labels and not self._are_classes(labels):
            warnings.append(
                f"no label accuracy: labels {min(labels)} to {max(labels)} are out of the range 0 "
                f"to {(self.extractor.classes or 0) - 1} of the classes of {self.extractor.name}"
            )
        elif labels and self.accuracy is not None:  # all ranks must call compute()
            numbers["label_accuracy"] = float(self.accuracy.compute())
        if self.as_asked is not None:
            numbers |= _as_asked(*self.as_asked.compute(), even)
        if self.clip:
            numbers["clip_score"] = float(self.clip_score.compute())
            numbers |= {"clip": self.clip.name, "clip_sha256": self.clip.sha256}
        full = rank(found)
        if full < found.dim:
            warnings.append(
                f"the covariance is singular (rank {full} of {found.dim}): too few different "
                "images, do not trust this FID"
            )
        return numbers | ({"warning": "; ".join(warnings)} if warnings else {})

    def _are_classes(self, labels: set[int]) -> bool:
        """Whether all labels are classes of the extractor."""
        return all(0 <= label < (self.extractor.classes or 0) for label in labels)


def _as_asked(right: Tensor, judged: Tensor, even: bool) -> dict[str, Any]:
    """The shares of images that are as asked; if blocks are even, also without each of them."""
    whole = shares_of(right.sum(0), judged.sum(0))
    rest = [
        shares_of(right.sum(0) - r, judged.sum(0) - j) for r, j in zip(right, judged, strict=True)
    ]
    found: dict[str, Any] = {}
    for aspect, share in whole.items():
        found[f"{aspect}_as_asked"] = share
        if even and all(aspect in one for one in rest):
            found[f"{aspect}_as_asked_without_block"] = [one[aspect] for one in rest]
    return found


def _require_same_features(extractor: Extractor, reference: Statistics) -> None:
    """Raises UserError if the statistics were made with other features."""
    if reference.dim != extractor.dim:
        raise UserError(
            f"reference= has {reference.dim} dimensions, features={extractor.name} has "
            f"{extractor.dim}: use statistics made with the same features"
        )
    meta = reference.meta or {}  # files of other programs have no meta
    if (theirs := meta.get("features", extractor.name)) != extractor.name:
        raise UserError(
            f"reference= was made with features={brief(theirs)}, not {extractor.name}: "
            "use the same for both"
        )
    if meta.get("sha256", extractor.sha256) != extractor.sha256:
        raise UserError(
            f"reference= was made with other weights of {extractor.name}: make it again"
        )


def _require_same_size(resize: int | None, reference: Statistics) -> None:
    """Raises UserError if the statistics were made from images of another size."""
    meta = reference.meta or {}  # files of other programs, and our older ones, lack the entry
    if (theirs := meta.get("resize", resize)) != resize:
        ours, theirs = ("null" if size is None else brief(size) for size in (resize, theirs))
        raise UserError(
            f"reference= was made with resize={theirs}, not {ours}: use the same for both"
        )
