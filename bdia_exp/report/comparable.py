"""Which scores may be compared: those that are measured in the same way, of the same seeds."""

from collections.abc import Mapping
from typing import Any


def conditions(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether the score in a record can be compared with another.

    The `seeds` are None if they are not known, as in a record of `evaluate`.
    """
    score = record["score"]
    return {
        "note": str(score["note"]),
        "features_sha256": score.get("features_sha256"),
        "reference": record.get("config", {}).get("reference"),
        "reference_sha256": record.get("reference_sha256"),
        "images": int(score["images"]),
        "seeds": record.get("identity", {}).get("seeds"),
    }


def obstacle(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why two scores with these `conditions` cannot be compared; None if they can.

    It is "features", "reference", "images" or "seeds": the first in which they differ. A reference
    is identified by its name where a sha256 is not known.
    """
    reference = ["reference_sha256"]
    if not all(found["reference_sha256"] for found in (one, other)):
        reference = ["reference"]
    decisive = {
        "features": ["note", "features_sha256"],
        "reference": reference,
        "images": ["images"],
        "seeds": ["seeds"],
    }
    for what, keys in decisive.items():
        if any(one[key] != other[key] for key in keys):
            return what
    return None
