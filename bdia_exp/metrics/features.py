"""Feature extractors: from images to the vectors that FID compares."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from bdia_exp.batching import in_full_rows
from bdia_exp.errors import UserError
from bdia_exp.metrics.classifier import Classifier
from bdia_exp.metrics.colours import grey_of
from bdia_exp.sources.checkpoints import BUNDLED, sha256

if TYPE_CHECKING:
    from torchmetrics import Metric


class Features(NamedTuple):
    """features float32 [B, D], and class logits float32 [B, K] if the network has them."""

    features: Tensor
    logits: Tensor | None


class Extractor(Protocol):
    """A network that turns images, uint8 [B, C, H, W], into `Features`.

    `sha256` is the hash of its weights: statistics are comparable only if it is the same.
    `classes` is the number of classes of its logits, or None if they are not the classes of the
    labels; the Inception Score needs logits of any classes. `note` is printed beside every FID.
    """

    name: str
    device: torch.device
    dim: int
    classes: int | None
    has_logits: bool
    sha256: str
    comparable_to_inception: bool
    note: str

    def __call__(self, images: Tensor) -> Features: ...


class ClassifierFeatures:
    """The penultimate layer of a `Classifier` read from `path`.safetensors and `path`.json.

    Takes uint8 [B, channels, size, size] on any device; the result is on its own device. For one
    channel it also takes RGB images that are grey, that is, with three equal channels. Float32
    throughout (no TF32). On a CPU an image's features do not depend on its batch, to the bit.

    Raises UserError if a file is missing, and when called with other shapes or types.
    """

    comparable_to_inception = False
    has_logits = True
    note = "FID in the bundled classifier's features; not comparable with Inception FID"

    def __init__(self, path: str | Path, device: str | torch.device = "cpu"):
        weights, record = Path(f"{path}.safetensors"), Path(f"{path}.json")
        for file in (weights, record):
            if not file.exists():
                raise UserError(f"{file} is missing: reinstall, or run scripts/train_features.py")
        self.record = json.loads(record.read_text())
        network = self.record["network"]
        self.name = weights.stem
        self.dim: int = network["widths"][-1]
        self.classes: int | None = network["classes"]
        self.shape = (network["channels"], self.record["size"], self.record["size"])
        self.sha256 = sha256(weights)
        self.device = torch.device(device)
        self.net = Classifier(**network)
        self.net.load_state_dict(load_file(weights))
        self.net.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        if self.shape[0] == 1 and images.shape[1] == 3:
            if not (images == images[:, :1]).all():
                raise UserError(
                    f"features={self.name} are of grey images, and these have colours: convert "
                    "them to grey, or choose features=inception"
                )
            images = images[:, :1]
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise UserError(
                f"{self.name} takes uint8 images [B, {', '.join(map(str, self.shape))}], "
                f"not {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            both = in_full_rows(lambda x: torch.cat(self.net(x), 1), images.to(self.device))
        return Features(both[:, : self.dim], both[:, self.dim :])


def bundled(device: str | torch.device = "cpu") -> Extractor:
    """The Fashion-MNIST classifier that comes with the package: 1-channel 32×32 images only."""
    return ClassifierFeatures(BUNDLED / "fashion_features", device)


class GarmentFeatures(ClassifierFeatures):
    """The same features of coloured images, uint8 [B, 3, size, size]: of their largest channel.

    For garments in `colours.TINTS` that is the grey image, so the statistics of grey images are
    their reference. The colour has no effect: `colours.colour_of` judges it.
    """

    note = (
        "FID in the bundled classifier's features of the largest channel; colours have no effect; "
        "not comparable with Inception FID"
    )

    def __call__(self, images: Tensor) -> Features:
        return super().__call__(grey_of(images))


def garments(device: str | torch.device = "cpu") -> Extractor:
    """The bundled classifier for coloured garments: 3-channel 32×32 images."""
    return GarmentFeatures(BUNDLED / "fashion_features", device)


def label_accuracy(classes: int) -> "Metric":
    """The share of images that are classified as their label, over all ranks.

    `update(logits [B, classes], labels int [B])`; `compute()` → a number in [0, 1].
    """
    from torchmetrics.classification import MulticlassAccuracy

    from bdia_exp.metrics.sums import ADDED

    return MulticlassAccuracy(num_classes=classes, average="micro", **ADDED)
