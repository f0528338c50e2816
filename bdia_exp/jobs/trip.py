"""Images to noise and back: what `invert`, `roundtrip` and `edit` share.

A trip inverts images to noise with an `Inversion`, batch by batch, and may decode them again.
`invert` saves its end states in `states.safetensors`; another trip can decode from this file.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bdia_exp import dist, models
from bdia_exp.console import progress, say
from bdia_exp.errors import UserError
from bdia_exp.jobs.claims import claim, keep_coefficients, require_weights
from bdia_exp.jobs.coefficients import bare
from bdia_exp.jobs.fits.fitting import ensure
from bdia_exp.jobs.identity import identity_of, plainly
from bdia_exp.jobs.sampling import levels_of, sampler_on
from bdia_exp.jobs.settings import Editing, Inverting
from bdia_exp.jobs.texts import guidance_of, texts_of
from bdia_exp.jobs.trip_states import STATES_FILE, load_states
from bdia_exp.models import Condition, Model, Text, of_classes, require_class, require_guidance
from bdia_exp.models.running import same_bits
from bdia_exp.report import figures
from bdia_exp.samplers import inversion
from bdia_exp.samplers.core import Counted, Grid
from bdia_exp.samplers.fixedpoint import quantise, value
from bdia_exp.samplers.inversion import STATES, Inversion, Kept
from bdia_exp.sources import checkpoints
from bdia_exp.sources.prompts import Prompts
from bdia_exp.store import records
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import Folder, contact_sheet
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder


@dataclass(frozen=True)
class Way:
    """One pass over all images: per batch, the tensors needed to walk back; and its NFE."""

    kept: list[Kept]
    nfe: int

    def last(self, key: str) -> Tensor:
        """The tensors that all batches kept under a key, joined: [N, …], on the CPU."""
        return torch.cat([kept[key].cpu() for kept in self.kept])


@dataclass
class Trip:
    """One run of `invert`, `roundtrip` or `edit`. The network is loaded when it is needed."""

    asked: Inverting
    command: str
    run: RunFolder
    device: str
    inversion: Inversion
    grid: Grid
    source: str | Path  # where the images are, as a record names it
    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor | None  # int64 [N]; None for a model without classes
    texts: Prompts | None  # what each image shows, for a text model
    target: int | Prompts | None  # what `edit` makes of each image

    @classmethod
    def prepared(cls, asked: Inverting, command: str) -> "Trip":
        """Reads and checks all inputs, and finds the folder.

        It loads weights and writes a file only to fit the coefficients of sampler.gamma=auto.
        """
        device = dist.device(asked.device)
        inversion.of(bare(asked.sampler))  # raises UserError for one without an inverse
        about = asked.load("meta")
        levels = levels_of(asked, about)
        gone = round(asked.strength * (len(levels) - 1))
        if gone < 1:
            raise UserError(f"strength={asked.strength} leaves no step: give a larger value")
        located = checkpoints.located(asked.images)
        found = ImageSet(located, fit=about.image_shape)
        # Of a name such as bundled:FILE a record keeps the name, not its path on this machine.
        source = found.path if located == asked.images else asked.images
        rows = found.first(asked.limit)
        images = found.read(rows)
        for note in found.remarks(found.transparent):
            say(f"note: {found.path}: {note}")
        own, target = texts_of(asked, about, len(found))
        require_guidance(about, asked.guidance)
        labels = None if found.labels is None else torch.tensor(found.labels)[: len(rows)]
        labels = _labels(asked, about, labels, len(rows))

        ensure(asked, device, asked.batch)
        sampler = sampler_on(asked, levels)
        way = inversion.of(sampler, state=asked.state, time=asked.ddim_time)
        levels = levels[-gone - 1 :]
        way.growth(levels)  # raises UserError for a γ that cannot be undone

        more = {
            "command": command,
            "strength": asked.strength,
            "state": asked.state,
            "ddim_time": asked.ddim_time,
            "batch": asked.batch,
            "pixels": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
            "labels": None if labels is None else labels.tolist(),
        }
        if isinstance(asked, Editing):
            more |= {"to": asked.to, "classify": asked.classify and asked.features.config}
        run = claim(asked, lambda then: identity_of(asked, then, **more), f"{command}-")
        run.require_ours()
        return cls(asked, command, run, device, way, levels, source, images, labels, own, target)

    @property
    def done(self) -> bool:
        """Whether an earlier run made all results; prints a message if so."""
        if found := self.run.complete and self._whole:
            say(f"{self.run.root} is complete: nothing to do")
        return found

    @property
    def _whole(self) -> bool:
        """Whether the states or images that a complete run wrote are there."""
        root = self.run.root
        if self.command != "invert":
            return Folder(root).has(range(len(self.images)))
        file, sha256 = root / STATES_FILE, self.run.before.get("states_sha256")
        return file.is_file() and checkpoints.sha256(file) == sha256

    @cached_property
    def model(self) -> Model:
        """The model, with its weights."""
        return self.asked.load(self.device)

    @cached_property
    def states(self) -> Tensor:
        """The images as states, [N, C, h, w], of the dtype of `state`."""
        x = self.model.encode(self.images).to(STATES[self.asked.state])
        # In fixed point, decoding gives the rounded state.
        return value(quantise(x)) if self.asked.state == "fixed" else x

    def to_noise(self, source: str | None = None) -> Way:
        """Inverts all images; with a `source`, reads the states that a run of `invert` saved.

        It first writes an incomplete record, so that the folder belongs to this run.
        """
        require_weights(self.run, self.model.provenance)
        there = self._kept_by(Path(source).expanduser()) if source else None
        record: Record = {
            "command": self.command,
            "model": {"name": self.asked.model.name, **self.model.provenance},
            "sampler": self.asked.sampler.name,
            "grid": self.asked.grid.name,
            "steps": len(self.grid) - 1,
            "images": len(self.images),
            "source": str(self.source),
            "device": dist.device_name(self.device),
        }
        record |= guidance_of(self.asked)
        if self.model.takes_text:
            rows = slice(0, len(self.images))
            read = [self.condition(rows), self.condition(rows, self.target)]
            texts = [text for one in read if isinstance(one, Text) for text in one.prompts]
            record["prompts_cut"] = models.warn_of_cut(self.model, texts)
        self.run.begin(record, self.asked.plain())
        keep_coefficients(self.asked, self.run.root)
        seeds = torch.arange(len(self.images))  # for a sampler that draws noise
        parts = (tensor.split(self.asked.batch) for tensor in (self.states, seeds))
        return there or self.encode([{"z": z, "seeds": own} for z, own in zip(*parts, strict=True)])

    def encode(self, starts: Sequence[Kept]) -> Way:
        """Inverts to noise, batch by batch."""
        return self._walk("to noise", self.inversion.encode, starts)

    def decode(self, there: Way, to: int | Prompts | None = None) -> Way:
        """Decodes from noise, under the images' own class or prompt, or under `to`."""
        same = to is None

        def way(model, kept, grid):
            return self.inversion.decode(model, kept, grid, same=same)

        return self._walk("back", way, there.kept, to)

    def condition(self, rows: slice, to: int | Prompts | None = None) -> Condition:
        """The condition of some of the images: their own class or prompt, or `to`."""
        places = range(len(self.images))[rows]
        guidance = self.asked.guidance
        if isinstance(to, int):
            return of_classes(torch.full((len(places),), to), guidance)
        if texts := to or self.texts:
            assert guidance is not None  # there is a prompt
            return Text([texts(place) for place in places], guidance)
        return of_classes(None if self.labels is None else self.labels[rows], guidance)

    def _walk(
        self, name: str, way: Callable, starts: Sequence[Kept], to: int | Prompts | None = None
    ) -> Way:
        size, ends, nfe = self.asked.batch, [], 0
        with (
            torch.inference_mode(),
            same_bits(self.asked.state == "fixed"),  # in both directions
            progress(len(starts) * (len(self.grid) - 1), "steps") as bar,
        ):
            bar.set_description(name)
            for number, start in enumerate(starts):
                rows = slice(number * size, (number + 1) * size)
                denoiser = Counted(self.model.denoiser(self.condition(rows, to)))
                for state in way(denoiser, start, self.grid):
                    bar.update()
                    kept = state
                ends.append(kept)
                nfe = denoiser.nfe
                if not kept["z"].isfinite().all():
                    raise UserError(
                        f"the way {name} diverged (states are no longer finite): use a "
                        "sampler.gamma nearer to 1, fewer steps (nfe=) or state=fixed"
                    )
        return Way(ends, nfe)

    def _kept_by(self, source: Path) -> Way:
        old = records.load(source / "record.json") or {}
        if old.get("command") != "invert" or not old.get("complete"):
            raise UserError(f"states={source}: give the folder of a finished `bdia-exp invert`")
        nfe, sha256 = old.get("nfe"), old.get("states_sha256")
        if not (isinstance(nfe, int) and nfe > 0):
            raise UserError(
                f"states={source}: its record.json lacks nfe: invert these images again"
            )
        here, there = (
            {k: v for k, v in one.items() if k not in ("command", "to", "classify")}
            for one in (self.run.identity, plainly(old["identity"]))
        )
        records.require_same(source, there, here, "invert these images again")
        like = self.states.to(self.device).split(self.asked.batch)
        steps = len(self.grid) - 1
        return Way(load_states(source / STATES_FILE, sha256, like, self.inversion, steps), nfe)

    def decoded(self, way: Way) -> Tensor:
        """The images at the end of a pass, uint8 [N, C, H, W] on the CPU."""
        return self.pictures(way.last("z"))

    def pictures(self, states: Tensor) -> Tensor:
        """Clean states as images, uint8 [N, C, H, W] on the CPU."""
        parts = states.double().split(self.asked.batch)
        return torch.cat([self.model.decode(z.to(self.device)).cpu() for z in parts])

    @cached_property
    def through_autoencoder(self) -> Tensor | None:
        """The images after the autoencoder alone, without inversion; None if unchanged."""
        images = self.pictures(self.states)
        return None if torch.equal(images, self.images) else images

    def finish(
        self, rows: dict[str, Tensor], pictures: Tensor | None, numbers: Record, text: str
    ) -> Record:
        """Writes images, strip and record, in this order; prints a summary."""
        root, total = self.run.root, len(self.images)
        folder = Folder(root)
        if pictures is not None:
            folder.remove()  # images of this run from before an interruption
            folder.write(range(total), pictures)
            folder.manifest.merge()
            if self.labels is not None:
                to = self.target
                labels = [to] * total if isinstance(to, int) else self.labels.tolist()
                folder.label(range(total), labels)
        count = min(self.asked.strip, total)
        strips = {name: contact_sheet(row[:count], count) for name, row in rows.items()}
        figures.side_by_side(strips, root / "strip.png")
        record = self.run.finish(numbers)
        spent = f"{numbers['nfe']} evaluations to noise"
        spent += f" and {numbers['nfe_back']} back" if "nfe_back" in numbers else ""
        if record.get("rows_per_evaluation") == 2:
            spent += " (each of two rows: guidance)"
        say(f"{root}: {total} images, {len(self.grid) - 1} steps, {spent}\n{text}")
        return record


def _labels(asked: Inverting, about: Model, own: Tensor | None, count: int) -> Tensor | None:
    """The class of each image, int64 [N]; None for a model without classes.

    Raises UserError if classes are needed and unknown, or out of range.
    """
    if not about.num_classes:
        require_class(about, "class", asked.class_)
        return None
    labels = own if asked.class_ is None else torch.full((count,), asked.class_)
    if labels is None:
        raise UserError("these images have no labels: give class= for what they show")
    for label in sorted({*labels.tolist()}):
        require_class(about, "class", label)
    return labels
