"""A score: FID and label accuracy of images that come in batches."""

from typing import Any

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.metrics.features import Extractor, label_accuracy
from bdia_exp.metrics.frechet import frechet_distance, rank
from bdia_exp.metrics.moments import FeatureMoments, Statistics


class Score:
    """Extracts features of the images it is given and forgets the images.

    Under torchrun every rank updates with its own images and all ranks get the same result.
    Raises UserError at once if the reference was made with other features.
    """

    def __init__(self, extractor: Extractor, reference: Statistics | None):
        if reference is not None and reference.dim != extractor.dim:
            raise UserError(
                f"reference= has {reference.dim} dimensions, features={extractor.name} has "
                f"{extractor.dim}: use statistics made with the same features"
            )
        made_with = ((reference and reference.meta) or {}).get("sha256", extractor.sha256)
        if made_with != extractor.sha256:
            raise UserError(
                f"reference= was made with other weights of {extractor.name}: make it again"
            )
        self.extractor, self.reference, self.labelled = extractor, reference, False
        # The sums live where the extractor does: that is where NCCL adds them up over ranks.
        self.moments = FeatureMoments(extractor.dim).to(extractor.device)
        self.accuracy = None
        if extractor.classes:
            self.accuracy = label_accuracy(extractor.classes).to(extractor.device)

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Images uint8 [B, C, H, W]; labels int64 [B], the classes they were asked for, or None."""
        features, logits = self.extractor(images)
        self.moments.update(features)
        if self.accuracy is not None and logits is not None and labels is not None:
            self.accuracy.update(logits, labels.to(logits.device))
            self.labelled = True

    def statistics(self) -> Statistics:
        """Mean and covariance of all images of all ranks."""
        return self.moments.compute()

    def result(self) -> dict[str, Any]:
        """The numbers, as they go into a record. Raises UserError if there are too few images."""
        if self.reference is None:
            raise UserError("give reference= to score against")
        found = self.statistics()
        numbers: dict[str, Any] = {
            "fid": frechet_distance(found, self.reference),
            "images": found.count,
            "features": self.extractor.name,
            "features_sha256": self.extractor.sha256,
            "comparable_to_inception": self.extractor.comparable_to_inception,
            "note": self.extractor.note,
        }
        if self.labelled and self.accuracy is not None:
            numbers["label_accuracy"] = float(self.accuracy.compute())
        full = rank(found)
        if full < found.dim:
            numbers["warning"] = (
                f"the covariance is singular (rank {full} of {found.dim}): too few different "
                "images, do not trust this FID"
            )
        return numbers

    @staticmethod
    def sentence(numbers: dict[str, Any]) -> str:
        """The numbers as a line to print."""
        text = f"FID {numbers['fid']:.4f} ({numbers['images']} images; {numbers['note']})"
        if "label_accuracy" in numbers:
            text += f"\nlabel accuracy {100 * numbers['label_accuracy']:.2f} %"
        if "warning" in numbers:
            text += f"\nwarning: {numbers['warning']}"
        return text
