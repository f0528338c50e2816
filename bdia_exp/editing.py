"""The verbs invert, roundtrip and edit: from images to noise, and back.

All three go one way or both through an `Inversion`, batch after batch. What the first way keeps is
a file, `states.safetensors`, from which another run can go back.

The verbs' parameters are the keys of their configurations, checked before the call; what they share
is read from `config`, the same keys as plain data, by `Trip.prepared`.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bdia_exp import dist, figures, inversion, prompts, results, store
from bdia_exp.console import one_of, positive, progress, say
from bdia_exp.core import Counted, Grid, Sampler
from bdia_exp.errors import UserError
from bdia_exp.fixedpoint import Log, quantise, value
from bdia_exp.inversion import STATES, FixedPointInversion, Inversion, Kept
from bdia_exp.jobs.identity import plainly
from bdia_exp.metrics.features import Extractor, label_accuracy
from bdia_exp.models import Condition, Model, Text, require_class, require_guidance
from bdia_exp.results import Record
from bdia_exp.sampling import require_gammas
from bdia_exp.solvers import grid_for

IDENTITY = ("model", "sampler", "grid", "nfe", "strength", "state", "ddim_time", "batch", "dtype")
"""The keys that decide what images are inverted to."""
STATES_FILE = "states.safetensors"
CHANGE = 1e-4
"""The RMS of the change whose growth `roundtrip` measures: well above a float32's rounding."""


def invert(
    *,
    model: Callable[..., Model],
    sampler: Sampler,
    grid: Callable[..., Grid],
    images: str,
    limit: int | None,
    class_: int | None,
    prompt: str | None,
    guidance: float,
    nfe: int,
    strength: float,
    state: str,
    ddim_time: str,
    batch: int,
    device: str,
    dtype: str,
    out: str | None,
    strip: int,
    config: Record,
    choices: Record,
) -> Record:
    """Images to noise: keeps what the way back needs. Returns the record that it wrote."""
    trip = Trip.prepared(config, choices, "invert", model, sampler, grid)
    if trip.done:
        return trip.done
    there = trip.to_noise()
    numbers = {"nfe": there.nfe, **trip.about_noise(there)}
    save_states(trip.root / STATES_FILE, there.kept)
    rows = {"input": trip.images, "noise": _as_pictures(there.last("z"))}
    return trip.finish(rows, None, numbers, _noise_sentence(numbers))


def roundtrip(
    *,
    model: Callable[..., Model],
    sampler: Sampler,
    grid: Callable[..., Grid],
    images: str,
    limit: int | None,
    class_: int | None,
    prompt: str | None,
    guidance: float,
    nfe: int,
    strength: float,
    state: str,
    ddim_time: str,
    states: str | None,
    batch: int,
    device: str,
    dtype: str,
    out: str | None,
    strip: int,
    config: Record,
    choices: Record,
) -> Record:
    """Images to noise and back, and to noise once more: what comes back, how changes grow.

    Returns the record that it wrote.
    """
    trip = Trip.prepared(config, choices, "roundtrip", model, sampler, grid)
    if trip.done:
        return trip.done
    there = trip.to_noise(states)
    back = trip.decode(there)
    pictures = trip.decoded(back)
    numbers = {
        "nfe": there.nfe,
        "nfe_back": back.nfe,
        **trip.about_noise(there),
        "state_error": _errors(back.last("z"), trip.states),
        **trip.pixel_errors(pictures),
        "amplification": trip.amplification(there, back),
    }
    rows = {
        "input": trip.images,
        "reconstruction": pictures,
        "difference × 4": _difference(pictures, trip.images, 4),
    }
    wrong, pixels = numbers["state_error"], numbers["pixel_error"]
    units = " (pixels are −1 to 1)" if trip.through_autoencoder is None else ""
    sentence = (
        f"{_noise_sentence(numbers)}\nstate error: max {wrong['max']:.2e}, RMS {wrong['rms']:.2e}"
        f"{units}; pixel error: max {pixels['max']:.0f}, RMS {pixels['rms']:.3f} of "
        f"255{_autoencoder_sentence(numbers)}{_amplification_sentence(numbers['amplification'])}"
    )
    return trip.finish(rows, pictures, numbers, sentence)


def edit(
    *,
    model: Callable[..., Model],
    sampler: Sampler,
    grid: Callable[..., Grid],
    features: Callable[..., Extractor],
    images: str,
    limit: int | None,
    class_: int | None,
    prompt: str | None,
    guidance: float,
    to: int | str,
    nfe: int,
    strength: float,
    state: str,
    ddim_time: str,
    states: str | None,
    classify: bool,
    batch: int,
    device: str,
    dtype: str,
    out: str | None,
    strip: int,
    config: Record,
    choices: Record,
) -> Record:
    """Images to noise under their class or prompt, and back under another. Returns its record.

    The reconstruction, back under their own, is made too.
    """
    trip = Trip.prepared(config, choices, "edit", model, sampler, grid)
    if trip.done:
        return trip.done
    if not trip.model.takes_text:
        if not isinstance(to, int):
            raise UserError(f"to={to}: this model takes no text; give the number of a class")
        require_class(trip.model, "to", to)
    extractor = features(device=trip.device) if classify else None
    if extractor and extractor.classes != trip.model.num_classes:
        raise UserError("classify=true needs a classifier of the model's classes: features=bundled")
    there = trip.to_noise(states)
    back, away = trip.decode(there), trip.decode(there, to)
    same, pictures = trip.decoded(back), trip.decoded(away)
    numbers = {
        "nfe": there.nfe,
        "nfe_back": away.nfe,
        **trip.about_noise(there),
        **trip.pixel_errors(same),
        "edit_distance": _errors(pictures, trip.images),
    }
    sentence = (
        f"{_noise_sentence(numbers)}\nreconstruction: RMS {numbers['pixel_error']['rms']:.3f} of "
        f"255 from the input{_autoencoder_sentence(numbers)}; edit: RMS "
        f"{numbers['edit_distance']['rms']:.1f}"
    )
    if extractor and isinstance(to, int):
        numbers["classified_as_to"] = share = _share(extractor, pictures, to)
        sentence += f"\nthe classifier sees class {to} in {100 * share:.1f} % of the edits"
    rows = {
        "input": trip.images,
        "reconstruction": same,
        "edit" if trip.model.takes_text else f"edit, class {to}": pictures,
        "difference": _difference(pictures, trip.images, 1),
    }
    return trip.finish(rows, pictures, numbers, sentence)


@dataclass(frozen=True)
class Way:
    """All images, one way: what was kept of each batch, and the network evaluations of one."""

    kept: list[Kept]
    nfe: int

    def last(self, key: str) -> Tensor:
        """What all batches kept under a key, [N, …], on the CPU."""
        return torch.cat([kept[key].cpu() for kept in self.kept])


@dataclass
class Trip:
    """A run of one of the verbs: what goes where, and how."""

    root: Path
    device: str
    model: Model
    inversion: Inversion
    grid: Grid
    config: Record
    record: Record
    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor | None  # int64 [N]; of a text model None
    states: Tensor  # [N, C, H, W], of the dtype that is asked for
    done: Record | None

    @classmethod
    def prepared(cls, config, choices, verb, model, sampler, grid) -> "Trip":
        """Everything read and checked before anything is computed or written."""
        positive("batch", config["batch"])
        positive("strip", config["strip"])
        if not 0 < config["strength"] <= 1:
            raise UserError(f"strength={config['strength']} must be more than 0 and at most 1")
        one_of("dtype", config["dtype"], ["auto", "float32", "float16", "bfloat16"])
        require_gammas(config["sampler"])
        device = dist.device(config["device"])
        way = inversion.of(sampler, state=config["state"], time=config["ddim_time"])
        net: Model = model(device=device, dtype=config["dtype"])
        levels = grid_for(sampler, lambda steps: grid(steps, net.schedule), config["nfe"])
        gone = round(config["strength"] * (len(levels) - 1))
        if gone < 1:
            raise UserError(f"strength={config['strength']} leaves no step: choose more")
        levels = levels[-gone - 1 :]

        found = store.ImageSet(config["images"], fit=net.image_shape)
        rows = found.first(config["limit"])
        images = found.read(rows)
        labels = None if found.labels is None else torch.tensor(found.labels)[: len(rows)]
        if config["class"] is not None:
            labels = torch.full((len(rows),), config["class"])
        x = net.encode(images).to(STATES[config["state"]])
        if config["state"] == "fixed":
            x = value(quantise(x))  # what comes back is the state in fixed point

        identity = {key: config[key] for key in IDENTITY} | {
            "command": verb,
            "checkpoint": net.provenance["sha256"],
            "pixels": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
            "labels": None if labels is None else labels.tolist(),
        }
        if net.takes_text:
            identity |= {key: config[key] for key in ("prompt", "guidance")}
        if verb == "edit":
            identity |= {"to": config["to"]}
            identity["classify"] = config["classify"] and config["features"]
        identity = plainly(identity)
        name = f"{verb}-{choices['sampler']}-nfe{config['nfe']}-{results.digest(identity)}"
        out = config["out"]
        root = Path(out).expanduser() if out else Path("runs") / choices["model"] / name
        record: Record = results.provenance() | {
            "command": verb,
            "identity": identity,
            "complete": False,
            "model": {"name": choices["model"], **net.provenance},
            "sampler": choices["sampler"],
            "grid": choices["grid"],
            "steps": len(levels) - 1,
            "images": len(rows),
            "source": str(found.path),
            "device": dist.device_name(device),
            "config": config,
        }
        trip = cls(root, device, net, way, levels, config, record, images, labels, x, None)
        if net.takes_text:
            require_guidance(config["guidance"])
            record["rows_per_evaluation"] = 1 if config["guidance"] == 1 else 2
        if config["prompt"] is not None and not net.takes_text:
            raise UserError("prompt=: this model takes no text; leave prompt= out")
        if not net.num_classes:
            trip.labels = None
            if config["class"] is not None:
                require_class(net, "class", config["class"])
            if net.takes_text and config["prompt"] is None:
                raise UserError('say what the images show with prompt="…"; "" is nothing')
        elif labels is None:
            raise UserError("these images bring no labels: say what they show with class=")
        for label in sorted(set(trip.labels.tolist() if trip.labels is not None else [])):
            require_class(net, "class", label)
        old = results.load(root / "record.json")
        if not old and root.is_dir() and any(root.iterdir()):
            raise UserError(f"{root} holds other files: choose another out=, or an empty folder")
        if old:
            results.require_same(root, plainly(old.get("identity", {})), identity)
            whole = verb != "invert" or (root / STATES_FILE).exists()
            if old.get("complete") and whole:
                say(f"{root} is complete: nothing to do")
                trip.done = old
        return trip

    def to_noise(self, source: str | None = None) -> Way:
        """All images inverted; or, with a `source`, what a run of `invert` kept of them.

        Before any work it makes the folder ours, with a record that is not complete.
        """
        there = self._kept_by(Path(source).expanduser()) if source else None
        if self.config["state"] == "fixed":  # both ways must give the same bits
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True, warn_only=True)
        results.save(self.root / "record.json", self.record)
        return there or self.encode([{"z": z} for z in self.states.split(self.config["batch"])])

    def encode(self, starts: Sequence[Kept]) -> Way:
        """To noise, batch after batch."""
        return self._walk("to noise", self.inversion.encode, starts)

    def decode(self, there: Way, to: int | str | None = None) -> Way:
        """Back again, under the images' own class or prompt, or another."""
        same = to is None

        def way(model, kept, grid):
            return self.inversion.decode(model, kept, grid, same=same)

        return self._walk("back", way, there.kept, to)

    def condition(self, rows: slice, to: int | str | None = None) -> Condition:
        """That of some of the images: their own class or prompt, or `to`."""
        count = len(self.images[rows])
        if self.model.takes_text:
            prompt = prompts.of_text(self.config["prompt"] if to is None else str(to))
            return Text([prompt(row) for row in range(count)], self.config["guidance"])
        if isinstance(to, int):
            return torch.full((count,), to)
        return None if self.labels is None else self.labels[rows]

    def _walk(
        self, name: str, way: Callable, starts: Sequence[Kept], to: int | str | None = None
    ) -> Way:
        size, ends, nfe = self.config["batch"], [], 0
        with torch.inference_mode(), progress(len(starts) * (len(self.grid) - 1), "steps") as bar:
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
        old = results.load(source / "record.json") or {}
        if old.get("command") != "invert" or not old.get("complete"):
            raise UserError(f"states={source}: give the folder of a finished `bdia-exp invert`")
        here, there = (
            {k: v for k, v in identity.items() if k not in ("command", "to", "classify")}
            for identity in (self.record["identity"], plainly(old["identity"]))
        )
        results.require_same(source, there, here, "invert these images anew")
        return Way(load_states(source / STATES_FILE, self.device), old["nfe"])

    def decoded(self, way: Way) -> Tensor:
        """The images at the end of a way, uint8 [N, C, H, W] on the CPU."""
        return self._pictures(way.last("z"))

    def _pictures(self, states: Tensor) -> Tensor:
        parts = states.double().split(self.config["batch"])
        return torch.cat([self.model.decode(z.to(self.device)).cpu() for z in parts])

    @cached_property
    def through_autoencoder(self) -> Tensor | None:
        """What the images are after encoding and decoding alone; None if they stay as they are."""
        images = self._pictures(self.states)
        return None if torch.equal(images, self.images) else images

    def pixel_errors(self, pictures: Tensor) -> Record:
        """Of a reconstruction, from the input; and how much of it is the autoencoder's."""
        numbers: Record = {"pixel_error": _errors(pictures, self.images)}
        if self.through_autoencoder is not None:
            numbers["autoencoder_error"] = _errors(self.through_autoencoder, self.images)
            numbers["inversion_error"] = _errors(pictures, self.through_autoencoder)
        return numbers

    def about_noise(self, there: Way) -> Record:
        """How far from noise the end of the way is, and how much was kept beside the states."""
        z, level = there.last("z").double(), self.grid[0]
        numbers: Record = {
            "noise": {
                "rms": float(z.square().mean().sqrt()),
                "expected_rms": float(
                    (level.alpha**2 * self.states.square().mean() + level.sigma**2) ** 0.5
                ),
            }
        }
        if isinstance(self.inversion, FixedPointInversion):
            logs = [Log.from_tensors(kept) for kept in there.kept]
            numbers["side_information"] = {
                "bits_per_element_and_step": [round(bits, 3) for bits in logs[0].bits()],
                "bits_per_element": max(sum(log.bits()) for log in logs),
                "wrapped": sum(log.wrapped for log in logs),
                "clipped": sum(log.clipped for log in logs),
            }
        return numbers

    def amplification(self, there: Way, back: Way) -> Record | None:
        """How a change of one of the two states that came back grows on the way to noise.

        Predicted is what the method alone does to it; the network's part is in what is measured.
        Of fixed point only whether both ends have the same bits; of DDIM, with one state, None.
        """
        each, steps = self.inversion.amplification, len(self.grid) - 1
        found: Record = {"per_step": each, "predicted": each**steps}
        if isinstance(self.inversion, inversion.DDIMInversion):
            return None
        if isinstance(self.inversion, FixedPointInversion):
            same = all(
                torch.equal(a[key], b[key])
                for a, b in zip(self.encode(back.kept).kept, there.kept, strict=True)
                for key in ("z.fixed", "past.fixed")
            )
            return found | {"same_bits": same}
        second = "y" if "y" in back.kept[0] else "past"
        rng, changed, changes = torch.Generator().manual_seed(0), [], []
        for kept in back.kept:
            change = torch.randn(kept[second].shape, generator=rng) * CHANGE
            changes.append(change.to(kept[second]))
            changed.append({**kept, second: kept[second] + changes[-1]})
        ways = self.encode(changed), there
        new, old = (torch.stack([way.last("z"), way.last(second)]) for way in ways)
        grown = _errors(new, old)["rms"] / _errors(torch.cat(changes), torch.zeros(()))["rms"]
        return found | {"measured": grown}

    def finish(self, rows: dict[str, Tensor], pictures: Tensor | None, numbers: Record, text: str):
        """Writes images, strip, configuration and record, in this order; says what came out."""
        folder, total = store.Folder(self.root), len(self.images)
        if pictures is not None:
            folder.remove()  # of this run, stopped before its record was complete
            folder.write(range(total), pictures)
            if self.labels is not None:
                shown = self.config.get("to")
                labels = self.labels.tolist() if shown is None else [shown] * total
                folder.label(range(total), labels)
        count = min(self.config["strip"], total)
        strips = {name: store.contact_sheet(row[:count], count) for name, row in rows.items()}
        figures.side_by_side(strips, self.root / "strip.png")
        store.write_text(
            self.root / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config))
        )
        self.record |= {"complete": True, **numbers}
        results.save(self.root / "record.json", self.record)
        spent = f"{numbers['nfe']} evaluations to noise"
        spent += f" and {numbers['nfe_back']} back" if "nfe_back" in numbers else ""
        if self.model.takes_text and self.config["guidance"] != 1:
            spent += " (each of two rows: guidance)"
        say(f"{self.root}: {total} images, {len(self.grid) - 1} steps, {spent}\n{text}")
        return self.record


def save_states(path: Path, kept: Iterable[Kept]) -> None:
    """What was kept of every batch, as one file of tensors named `batch.key`."""
    flat = {
        f"{number}.{key}": tensor.contiguous().cpu().clone()
        for number, one in enumerate(kept)
        for key, tensor in one.items()
    }
    with store.atomic(path) as part:
        part.write_bytes(save(flat))


def load_states(path: Path, device: str) -> list[Kept]:
    """What `save_states` wrote. Raises UserError if it is not readable."""
    try:
        flat = load_file(path, device)
        batches: dict[int, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            number, _, key = name.partition(".")
            batches.setdefault(int(number), {})[key] = tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove that folder and run `bdia-exp invert` again"
        ) from None
    return [batches[number] for number in sorted(batches)]


def _errors(a: Tensor, b: Tensor) -> dict[str, float]:
    wrong = a.double().cpu() - b.double().cpu()
    return {"max": float(wrong.abs().max()), "rms": float(wrong.square().mean().sqrt())}


def _difference(a: Tensor, b: Tensor, times: int) -> Tensor:
    return ((a.int() - b.int()).abs() * times).clamp(max=255).byte()


def _as_pictures(z: Tensor) -> Tensor:
    """States of any scale as grey values: ±3 standard deviations from black to white."""
    return (z.double() / z.double().std().clamp(min=1e-12) * 42.5 + 128).clip(0, 255).byte()


def _share(extractor: Extractor, images: Tensor, label: int) -> float:
    assert extractor.classes
    accuracy: Any = label_accuracy(extractor.classes)
    for part in images.split(256):
        logits = extractor(part).logits
        assert logits is not None
        accuracy.update(logits.cpu(), torch.full((len(part),), label))
    return float(accuracy.compute())


def _noise_sentence(numbers: Record) -> str:
    noise = numbers["noise"]
    text = f"noise: RMS {noise['rms']:.4g}, of images noised at random {noise['expected_rms']:.4g}"
    if side := numbers.get("side_information"):
        text += f"; side information: {side['bits_per_element']:.3g} bits an element"
        if side["wrapped"] or side["clipped"]:
            text += f", {side['wrapped'] + side['clipped']} numbers left the range"
    return text


def _autoencoder_sentence(numbers: Record) -> str:
    if "inversion_error" not in numbers:
        return ""
    own, rest = numbers["autoencoder_error"]["rms"], numbers["inversion_error"]["rms"]
    return f" (the autoencoder alone: {own:.3f}; from what it gives: {rest:.3f})"


def _amplification_sentence(found: Record | None) -> str:
    if found is None:
        return ""
    text = f"\na change grows on the way to noise by {found['predicted']:.3g} as predicted"
    if "measured" in found:
        return text + f", by {found['measured']:.3g} as measured"
    exact = found["same_bits"]
    return text + ("; the same bits came back at both ends" if exact else "; NOT the same bits")
