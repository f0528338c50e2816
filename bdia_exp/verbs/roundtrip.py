"""`roundtrip`: inverts images to noise, decodes them, and measures the errors."""

from bdia_exp.jobs.settings import RoundTrip
from bdia_exp.jobs.trip import Trip
from bdia_exp.jobs.trip_errors import (
    about_noise,
    amplification,
    amplification_sentence,
    autoencoder_sentence,
    difference,
    errors,
    noise_sentence,
    pixel_errors,
)
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


def roundtrip(asked: RoundTrip) -> Record:
    """Inverts images, decodes them, and inverts them again to measure how changes grow.

    Returns the record that it wrote.
    """
    trip = Trip.prepared(asked, "roundtrip")
    if trip.done:
        return trip.run.before
    there = trip.to_noise(asked.states)
    back = trip.decode(there)
    pictures = trip.decoded(back)
    numbers = {
        "nfe": there.nfe,
        "nfe_back": back.nfe,
        **about_noise(trip, there),
        "state_error": errors(back.last("z"), trip.states),
        **pixel_errors(trip, pictures),
        "amplification": amplification(trip, there, back),
    }
    rows = {
        "input": trip.images,
        "reconstruction": pictures,
        "difference × 4": difference(pictures, trip.images, 4),
    }
    wrong, pixels = numbers["state_error"], numbers["pixel_error"]
    units = " (pixels are −1 to 1)" if trip.through_autoencoder is None else ""
    sentence = (
        f"{noise_sentence(numbers)}\nstate error: max {wrong['max']:.2e}, RMS {wrong['rms']:.2e}"
        f"{units}; pixel error: max {pixels['max']:.0f}, RMS {pixels['rms']:.3f} of "
        f"255{autoencoder_sentence(numbers)}{amplification_sentence(numbers['amplification'])}"
    )
    return trip.finish(rows, pictures, numbers, sentence)


VERB = Verb(roundtrip, RoundTrip)
