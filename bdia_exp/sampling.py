"""From seeds to images: a job, and the stream of batches that a rank makes of it."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from bdia_exp import dist, store
from bdia_exp.core import Counted, Grid, Sampler
from bdia_exp.errors import UserError
from bdia_exp.models import Model, require_class
from bdia_exp.results import Record
from bdia_exp.seeds import Generators
from bdia_exp.solvers import grid_for

DEFAULT_IMAGES = 64
IDENTITY = ("model", "sampler", "grid", "nfe", "class", "dtype", "noise_device")
"""The keys that decide what image a seed gives; they and the seeds name a run."""
SCORED_BY = ("reference", "features", "metrics", "resize", "clip")
"""The keys that decide, beside the images, what their score is."""


def same_score(old: Record, new: Record) -> bool:
    """Whether two configurations of `sample` score the same images alike.

    Records older than a key lack it, and were scored as its default has it.
    """

    def asked(config: Record) -> list:
        chosen = {key: config.get(key) for key in SCORED_BY}
        if isinstance(features := chosen["features"], dict) and features.get("dim") == 2048:
            chosen["features"] = {key: features[key] for key in features if key != "dim"}
        return [chosen[key] for key in SCORED_BY]

    return asked(old) == asked(new)


def identity_of(config: Record, checkpoint_sha256: str) -> Record:
    """What decides the images of a run of `sample`, in the form that a record keeps."""
    seeds, images = config["seeds"], config["images"]
    wanted = str(seeds) if seeds is not None else f"0-{(images or DEFAULT_IMAGES) - 1}"
    chosen = {key: config[key] for key in IDENTITY}
    return json.loads(json.dumps(chosen | {"seeds": wanted, "checkpoint": checkpoint_sha256}))


def require_gammas(sampler: Record) -> None:
    """Raises UserError unless every γ of a sampler's configuration is 0 to 1.

    The solvers take more: 1/γ runs them backwards.
    """
    for key in ("gamma", "gamma1", "gamma2"):
        if not 0 <= sampler.get(key, 0.0) <= 1:
            raise UserError(
                f"sampler.{key}={sampler[key]} must be 0 to 1: 0 is the base method, 1 BDIA of "
                "Tables 2 and 3"
            )


@dataclass(frozen=True)
class Job:
    """Everything that decides an image but its seed."""

    model: Model
    sampler: Sampler
    grid: Grid
    label: int | None
    noise_device: str

    @classmethod
    def build(cls, *, model, sampler, grid, nfe, label, device, dtype, noise_device) -> "Job":
        """Loads the model and fits a grid to the NFE. Raises UserError for what cannot be."""
        loaded: Model = model(device=device, dtype=dtype)
        if label is not None:
            require_class(loaded, "class", label)
        levels = grid_for(sampler, lambda steps: grid(steps, loaded.schedule), nfe)
        return cls(loaded, sampler, levels, label, noise_device)

    def draw(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The noise and the labels of these seeds, drawn in EDM's order."""
        return self._draw(Generators(seeds, self.noise_device))

    def _draw(self, rng: Generators) -> tuple[Tensor, Tensor | None]:
        z = self.model.start(rng, self.grid[0])
        if not self.model.num_classes:
            return z, None
        labels = rng.randint(self.model.num_classes)
        return z, labels if self.label is None else torch.full_like(labels, self.label)

    def sample(self, seeds: Sequence[int], step: Callable[[], object]) -> "Batch":
        """The images of these seeds, and the network evaluations that each of them took.

        `step` is called after every step of the sampler.
        """
        rng = Generators(seeds, self.noise_device)
        z, labels = self._draw(rng)
        denoiser = Counted(self.model.denoiser(labels))
        sampler: Callable[..., Iterator[Tensor]] = self.sampler
        if "noise" in inspect.signature(sampler).parameters:
            sampler = partial(sampler, noise=rng.randn_like)  # of these seeds, after their start
        with torch.inference_mode():
            for state in sampler(denoiser, z, self.grid):
                step()
                z = state
        if not z.isfinite().all():
            raise UserError(
                "the sampler diverged (states are no longer finite): use more nfe= or a smaller "
                "sampler.gamma="
            )
        return Batch(seeds, self.model.decode(z).cpu(), labels, denoiser.nfe)


@dataclass(frozen=True)
class Batch:
    seeds: Sequence[int]
    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor | None  # int64 [B]
    nfe: int | None  # None: read from the disk


def stream(
    job: Job, batches: Sequence[Sequence[int]], folder: store.Folder | None, bar: tqdm
) -> Iterator[Batch]:
    """This rank's share of the batches: read where they are on the disk, sampled where not.

    The seeds are cut into batches before they are dealt to the ranks, and a batch that was not
    finished is made again whole: so no image depends on the number of processes or on a restart.
    """
    steps, total = len(job.grid) - 1, sum(map(len, batches))

    def advance(images: float) -> None:
        bar.update(min(images, total - bar.n))  # the last batch of another rank may be shorter

    for seeds in batches[dist.rank() :: dist.world()]:
        everyone = len(seeds) * dist.world()  # the bar of rank 0 stands for all
        if folder and folder.has(seeds):
            yield Batch(seeds, folder.read(seeds), job.draw(seeds)[1], None)
            advance(everyone)
            continue
        made = job.sample(seeds, partial(advance, everyone / steps))
        if folder:
            folder.write(seeds, made.images)
        yield made
