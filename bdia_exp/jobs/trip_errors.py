"""Errors of a trip to noise and back: pixels, noise and amplification, as numbers and text."""

from typing import Any

import torch
from torch import Tensor

from bdia_exp.jobs.trip import Trip, Way
from bdia_exp.metrics.features import Extractor, label_accuracy
from bdia_exp.samplers.fixedpoint import Log
from bdia_exp.samplers.inversion import DDIMInversion, FixedPointInversion
from bdia_exp.samplers.mix import Mix
from bdia_exp.store.records import Record

CHANGE = 1e-4
"""RMS of the change whose growth `roundtrip` measures: well above float32's rounding error."""
TOO_LARGE = 2
"""Inverted images with more than this many times the expected RMS cannot be edited."""


def pixel_errors(trip: Trip, pictures: Tensor) -> Record:
    """Pixel errors of a reconstruction against the input, and the autoencoder's part of them."""
    numbers: Record = {"pixel_error": errors(pictures, trip.images)}
    if trip.through_autoencoder is not None:
        numbers["autoencoder_error"] = errors(trip.through_autoencoder, trip.images)
        numbers["inversion_error"] = errors(pictures, trip.through_autoencoder)
    return numbers


def about_noise(trip: Trip, there: Way) -> Record:
    """How close the inverted images are to noise, and how much side information was kept."""
    z, (alpha, sigma, _) = there.last("z").double(), trip.grid[0]
    drawn = sigma.power if isinstance(sigma, Mix) else sigma**2
    numbers: Record = {
        "noise": {
            "rms": float(z.square().mean().sqrt()),
            "expected_rms": float(((alpha * trip.states).square().mean() + drawn) ** 0.5),
        }
    }
    if isinstance(trip.inversion, FixedPointInversion):
        logs = [Log.from_tensors(kept) for kept in there.kept]
        numbers["side_information"] = {
            "bits_per_element_and_step": [round(bits, 3) for bits in logs[0].bits()],
            "bits_per_element": max(sum(log.bits()) for log in logs),
            "wrapped": sum(log.wrapped for log in logs),
            "clipped": sum(log.clipped for log in logs),
        }
    return numbers


def amplification(trip: Trip, there: Way, back: Way) -> Record | None:
    """How a small change of one of the two decoded states grows when it is inverted again.

    `predicted` includes only the method; `measured` also includes the network. For fixed point,
    only whether both ends have the same bits. None for DDIM, which has one state.
    """
    found: Record = {"predicted": trip.inversion.growth(trip.grid)}
    if isinstance(trip.inversion, DDIMInversion):
        return None
    if isinstance(trip.inversion, FixedPointInversion):
        same = all(
            torch.equal(a[key], b[key])
            for a, b in zip(trip.encode(back.kept).kept, there.kept, strict=True)
            for key in ("z.fixed", "past.fixed")
        )
        return found | {"same_bits": same}
    second = "y" if "y" in back.kept[0] else "past"
    rng, changed, changes = torch.Generator().manual_seed(0), [], []
    for kept in back.kept:
        change = torch.randn(kept[second].shape, generator=rng) * CHANGE
        changes.append(change.to(kept[second]))
        changed.append({**kept, second: kept[second] + changes[-1]})
    ways = trip.encode(changed), there
    new, old = (torch.stack([way.last("z"), way.last(second)]) for way in ways)
    grown = errors(new, old)["rms"] / errors(torch.cat(changes), torch.zeros(()))["rms"]
    return found | {"measured": grown}


def errors(a: Tensor, b: Tensor) -> dict[str, float]:
    """The largest and the RMS difference of elements, in the units of the two tensors.

    The shapes are equal, or can be broadcast. For images, uint8, the scale is 0 to 255.
    """
    wrong = a.double().cpu() - b.double().cpu()
    return {"max": float(wrong.abs().max()), "rms": float(wrong.square().mean().sqrt())}


def difference(a: Tensor, b: Tensor, times: int) -> Tensor:
    """|a − b| of images, uint8 of one shape, enlarged `times` times; above 255 it is 255."""
    return ((a.int() - b.int()).abs() * times).clamp(max=255).byte()


def as_pictures(z: Tensor) -> Tensor:
    """States, [N, C, H, W], as uint8 pixels: ±3 standard deviations (of all) from black to white.

    Of pairs (x, v), [N, 2, C, H, W], x is shown.
    """
    z = z[:, 0] if z.ndim == 5 else z
    return (z.double() / z.double().std().clamp(min=1e-12) * 42.5 + 128).clip(0, 255).byte()


def share_of(extractor: Extractor, images: Tensor, label: int) -> float:
    """The share of images, uint8 [N, C, H, W], that a classifier sees as class `label`: 0 to 1."""
    assert extractor.classes
    accuracy: Any = label_accuracy(extractor.classes)
    for part in images.split(256):
        logits = extractor(part).logits
        assert logits is not None
        accuracy.update(logits.cpu(), torch.full((len(part),), label))
    return float(accuracy.compute())


def noise_sentence(numbers: Record) -> str:
    noise = numbers["noise"]
    text = f"noise: RMS {noise['rms']:.4g}, of images noised at random {noise['expected_rms']:.4g}"
    if side := numbers.get("side_information"):
        text += f"; side information: {side['bits_per_element']:.3g} bits an element"
        if side["wrapped"] or side["clipped"]:
            text += f", {side['wrapped'] + side['clipped']} numbers left the range"
    if (times := noise["rms"] / noise["expected_rms"]) > TOO_LARGE:
        text += (
            f"\nthe inverted images are {times:.3g} times as large as noise, too large to be "
            "edited: choose another method; for BDIA γ from 0.92 to 1, or a fit of γ with "
            "fit.within=[0.8,1.25]"
        )
    return text


def autoencoder_sentence(numbers: Record) -> str:
    if "inversion_error" not in numbers:
        return ""
    own, rest = numbers["autoencoder_error"]["rms"], numbers["inversion_error"]["rms"]
    return f" (the autoencoder alone: {own:.3f}; the inversion alone: {rest:.3f})"


def amplification_sentence(found: Record | None) -> str:
    if found is None:
        return ""
    text = f"\na change grows on the way to noise by {found['predicted']:.3g} as predicted"
    if "measured" in found:
        return text + f", by {found['measured']:.3g} as measured"
    exact = found["same_bits"]
    return text + ("; the same bits came back at both ends" if exact else "; NOT the same bits")
