"""What was measured of images, and with what: enough for every metric, without the networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdia_exp.metrics.features import Extractor
from bdia_exp.store import records
from bdia_exp.store.records import Record


class Measured(NamedTuple):
    """features float32 [B, D]; or None: logits float32 [B, K], CLIP scores float64 [B], and what
    `garments.JudgesPrompts` found, int64 [B, 2]."""

    features: Tensor
    logits: Tensor | None = None
    pairs: Tensor | None = None
    obeyed: Tensor | None = None

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

    @classmethod
    def of(cls, about: Any) -> "Known":
        """From what a record says. Raises ValueError if that is no description of a network."""
        if not isinstance(about, dict) or not {"name", "sha256"} <= about.keys():
            raise ValueError("it describes no network")
        found = {key: value for key, value in about.items() if key in ABOUT}
        records.require_types(found, TYPES)
        return cls(**found)

    def __call__(self, images: Any, prompts: Any = None) -> Any:
        raise TypeError(f"{self.name} is only known by its record")

    obeyed = __call__


TYPES: records.Types = {
    "name": (str,),
    "sha256": (str,),
    "dim": (int,),
    "classes": (int, NoneType),
    "has_logits": (bool,),
    "comparable_to_inception": (bool,),
    "note": (str,),
}
ABOUT = tuple(TYPES)


def description(
    extractor: Extractor, resize: int | None, clip: Any, prompt: bool = False
) -> Record:
    """What a record says of the networks that measure, and at which size images are seen.

    `prompt`: whether they also judge the images by their prompts.
    """
    found = {key: getattr(extractor, key) for key in ABOUT} | {"resize": resize}
    found |= {"prompt": True} if prompt else {}
    return found | ({"clip": {"name": clip.name, "sha256": clip.sha256}} if clip else {})


def suffix(described: Record) -> str:
    """The end of the names of files of features; it differs if the features can differ."""
    decides = {
        key: described.get(key) for key in ("name", "sha256", "dim", "resize", "clip", "prompt")
    }
    return f".features-{records.digest(decides)}.npz"
