"""`invert`: inverts images to noise, and keeps the states that decoding needs."""

from bdia_exp.jobs.settings import Inverting
from bdia_exp.jobs.trip import Trip
from bdia_exp.jobs.trip_errors import about_noise, as_pictures, noise_sentence
from bdia_exp.jobs.trip_states import STATES_FILE, save_states
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


def invert(asked: Inverting) -> Record:
    """Inverts images to noise, keeps the states for decoding. Returns the record that it wrote."""
    trip = Trip.prepared(asked, "invert")
    if trip.done:
        return trip.run.before
    there = trip.to_noise()
    numbers = {"nfe": there.nfe, **about_noise(trip, there)}
    numbers["states_sha256"] = save_states(trip.run.root / STATES_FILE, there.kept)
    rows = {"input": trip.images, "noise": as_pictures(there.last("z"))}
    return trip.finish(rows, None, numbers, noise_sentence(numbers))


VERB = Verb(invert, Inverting)
