"""`edit`: inverts images to noise, and decodes them under another class or prompt."""

from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.jobs.settings import Editing
from bdia_exp.jobs.trip import Trip
from bdia_exp.jobs.trip_errors import (
    about_noise,
    autoencoder_sentence,
    difference,
    errors,
    noise_sentence,
    pixel_errors,
    share_of,
)
from bdia_exp.metrics import garments
from bdia_exp.metrics.features import Extractor
from bdia_exp.models import require_class
from bdia_exp.sources.prompts import Prompts
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


def edit(asked: Editing) -> Record:
    """Inverts images under their class or prompt, decodes them under another. Returns the record.

    It also makes the reconstruction: the images decoded under their own class or prompt.
    """
    trip = Trip.prepared(asked, "edit")
    if trip.done:
        return trip.run.before
    extractor = _checked(asked, trip)
    there = trip.to_noise(asked.states)
    back, away = trip.decode(there), trip.decode(there, trip.target)
    same, pictures = trip.decoded(back), trip.decoded(away)
    numbers = {
        "nfe": there.nfe,
        "nfe_back": away.nfe,
        **about_noise(trip, there),
        **pixel_errors(trip, same),
        "edit_distance": errors(pictures, trip.images),
    }
    if isinstance(trip.target, int) and extractor:
        numbers["classified_as_to"] = share_of(extractor, pictures, trip.target)
    elif isinstance(trip.target, Prompts) and extractor:
        numbers |= _as_asked(extractor, pictures, trip.target)
        numbers["change_outside"] = garments.change_outside(pictures, trip.images)
    rows: dict[str, Tensor] = {
        "input": trip.images,
        "reconstruction": same,
        "edit" if trip.model.takes_text else f"edit, class {asked.to}": pictures,
        "difference": difference(pictures, trip.images, 1),
    }
    return trip.finish(rows, pictures, numbers, _sentence(asked, numbers))


def _checked(asked: Editing, trip: Trip) -> Extractor | None:
    """The judge of the edits, if `classify`.

    Raises UserError for a class that the model does not have, and if `features` cannot judge.
    """
    by_text = trip.model.takes_text
    if isinstance(trip.target, int):
        require_class(trip.model, "to", trip.target)
    if not asked.classify:
        return None
    extractor = asked.features.make(device=trip.device)
    if by_text and not isinstance(extractor, garments.JudgesPrompts):
        raise UserError(
            "classify=true judges prompts with features=garments only, which knows the prompts of "
            "model=mini_sd: leave it out"
        )
    if not by_text and extractor.classes != trip.model.num_classes:
        raise UserError("classify=true needs a classifier of the model's classes: features=bundled")
    return extractor


def _as_asked(extractor: Extractor, pictures: Tensor, to: Prompts) -> Record:
    """The shares of pictures, uint8 [N, 3, H, W], with the class and colour of their prompts.

    `judged` are the numbers of pictures of which these are shares.
    """
    logits = extractor(pictures).logits
    assert logits is not None
    assert isinstance(extractor, garments.JudgesPrompts)
    obeyed = extractor.obeyed(pictures, logits, [to(k) for k in range(len(pictures))])
    judged = (obeyed != garments.NOTHING).sum(0)
    return {
        "as_asked": garments.shares_of((obeyed == 1).sum(0), judged),
        "judged": dict(zip(garments.ASPECTS, judged.tolist(), strict=True)),
    }


def _sentence(asked: Editing, numbers: Record) -> str:
    text = (
        f"{noise_sentence(numbers)}\nreconstruction: RMS {numbers['pixel_error']['rms']:.3f} of "
        f"255 from the input{autoencoder_sentence(numbers)}; edit: RMS "
        f"{numbers['edit_distance']['rms']:.1f}"
    )
    if (share := numbers.get("classified_as_to")) is not None:
        text += f"\nthe classifier sees class {asked.to} in {100 * share:.1f} % of the edits"
    if shares := numbers.get("as_asked"):
        found = ", ".join(f"{aspect} in {100 * share:.1f} %" for aspect, share in shares.items())
        text += (
            f"\nas asked: {found} of the edits; outside the garment they differ from the input by "
        )
        text += f"RMS {numbers['change_outside']:.1f}"
    return text


VERB = Verb(edit, Editing)
