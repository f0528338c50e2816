"""What was measured of images, and with what: enough for every metric, without the networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdia_exp.metrics.features import Extractor
from bdia_exp.store import records
from bdia_exp.store.records import Record


class Measured(NamedTuple):
    """features float32 [B, D]; logits float32 [B, K] and CLIP scores float64 [B], or None."""

    features: Tensor
    logits: Tensor | None = None
    pairs: Tensor | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as arrays, by name, without what is None."""
        return {k: v.cpu().numpy() for k, v in self._asdict().items() if v is not None}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Measured":
        """From arrays as of `arrays`; others are left out."""
        known = {k: torch.from_numpy(v) for k, v in arrays.items() if k in cls._fields}
        return cls(**known)


@dataclass
class Known:
    """An extractor or a CLIP model that a record describes. It can measure nothing."""

    name: str
    sha256: str
    dim: int = 0
    classes: int | None = None
    has_logits: bool = False
    comparable_to_inception: bool = False
    note: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, images: Any, prompts: Any = None) -> Any:
        raise TypeError(f"{self.name} is only known by its record")


ABOUT = ("name", "sha256", "dim", "classes", "has_logits", "comparable_to_inception", "note")


def description(extractor: Extractor, resize: int | None, clip: Any) -> Record:
    """What a record says of the networks that measure, and at which size images are seen."""
    found = {key: getattr(extractor, key) for key in ABOUT} | {"resize": resize}
    return found | ({"clip": {"name": clip.name, "sha256": clip.sha256}} if clip else {})


def suffix(described: Record) -> str:
    """The end of the names of files of features; it differs if the features can differ."""
    decides = {key: described.get(key) for key in ("name", "sha256", "dim", "resize", "clip")}
    return f".features-{records.digest(decides)}.npz"
