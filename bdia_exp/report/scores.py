"""A score as text."""

from typing import Any

from bdia_exp.report.cells import AS_ASKED
from bdia_exp.report.statistics import interval


def sentence(numbers: dict[str, Any]) -> str:
    """The numbers as lines to print."""
    fid = f"{numbers['fid']:.4f}"
    if parts := numbers.get("fid_without_block"):
        fid += f" ± {interval(numbers['fid'], parts).half_width:.4f}"
    lines = [f"FID {fid} ({numbers['images']} images; {numbers['note']})"]
    if "label_accuracy" in numbers:
        lines[0] += f", label accuracy {100 * numbers['label_accuracy']:.2f} %"
    if "kid" in numbers:
        lines.append(f"KID {numbers['kid']:.6f} ± {numbers['kid_std']:.6f}")
    if "precision" in numbers:
        lines.append(f"precision {numbers['precision']:.4f}, recall {numbers['recall']:.4f}")
    if "isc" in numbers:
        what = "Inception Score" if numbers["comparable_to_inception"] else "classifier score"
        lines.append(f"{what} {numbers['isc']:.4f} ± {numbers['isc_std']:.4f}")
    for key, share in numbers.items():
        if key.endswith(AS_ASKED):
            lines[0] += f", {key.removesuffix(AS_ASKED)} as asked {100 * share:.2f} %"
    if "clip_score" in numbers:
        lines.append(f"CLIP score {numbers['clip_score']:.2f} ({numbers['clip']})")
    if "warning" in numbers:
        lines.append(f"warning: {numbers['warning']}")
    return "\n".join(lines)
