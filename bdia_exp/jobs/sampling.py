"""From seeds to images: a job, and the stream of its batches on one rank."""

import inspect
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bdia_exp import dist
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import sources_of
from bdia_exp.jobs.coefficients import bare, bound
from bdia_exp.jobs.identity import coefficients_for
from bdia_exp.jobs.settings import Drawing, Sampling, Solving
from bdia_exp.jobs.texts import Texts
from bdia_exp.models import Condition, Model, of_classes, require_class, require_guidance
from bdia_exp.samplers.core import Counted, Grid, Sampler
from bdia_exp.samplers.cost import evaluations, grid_for
from bdia_exp.samplers.linear import Diffusion
from bdia_exp.seeds import Generators
from bdia_exp.sources import checkpoints
from bdia_exp.store.images import Folder, Latents
from bdia_exp.store.shards import Shards

TOLERANCE = 1e-9
"""Relative tolerance of σ/α at the ends of the range that a network supports."""


def levels_of(asked: Solving, model: Model) -> Grid:
    """The grid on which the sampler uses exactly `nfe`. Raises UserError if there is none."""
    make, (least, most) = asked.grid.make, model.schedule.supported
    grid = grid_for(bare(asked.sampler), lambda steps: make(steps, model.schedule), asked.nfe)
    if isinstance(model.schedule, Diffusion) and grid[0].is_scalar:
        raise UserError(
            f"grid={asked.grid.name} has levels of numbers, and diffusion={asked.diffusion.name} "
            "has matrices: choose grid=quadratic_time"
        )
    low, high = least * (1 - TOLERANCE), most * (1 + TOLERANCE)
    beyond = [
        level.rho
        for level in grid
        if level.is_scalar and level.sigma and not low <= level.rho <= high
    ]
    if beyond:
        raise UserError(
            f"grid={asked.grid.name} has sigma={beyond[0]:.4g}, and this network supports "
            f"{least:g} to {most:g}: choose grid=karras or grid=arc, which keep to this range"
        )
    return grid


def sampler_on(asked: Solving, grid: Grid) -> Sampler:
    """The sampler with its coefficients for this grid.

    Raises UserError if they are of another grid, too few, or of no use to this sampler.
    """
    sampler = bound(asked.sampler, coefficients_for(asked, grid))
    if sampler is not bare(asked.sampler):
        evaluations(sampler, grid)
    return sampler


def require_possible(asked: Drawing) -> None:
    """Raises UserError for settings that do not fit the model, without its weights.

    It downloads nothing: what only a file says that is not on this machine is not checked.
    """
    config, files = asked.model.config, sources_of(asked)
    if all(map(_is_described, filter(None, (config, config.get("control"))))):
        read = [files[key] for key in ("prompts", "control") if key in files]
        here = all(map(checkpoints.present, read))
        texts_and_grid(asked, asked.load("meta"), read=here)


def _is_described(network: Mapping[str, Any]) -> bool:
    """Whether the configuration describes a network, or a file that is on this machine."""
    name = network["checkpoint"]
    return bool(network.get("network") or name.startswith("random:") or checkpoints.present(name))


def texts_and_grid(asked: Solving, model: Model, *, read: bool = True) -> tuple[Texts | None, Grid]:
    """The texts, if they are to be read, and the grid. Raises UserError if a setting does not fit.

    The model may be on the device "meta".
    """
    require_class(model, "class", asked.class_)
    texts = Texts.of(model, asked) if read and isinstance(asked, Drawing) else None
    require_guidance(model, asked.guidance)
    return texts, levels_of(asked, model)


@dataclass(frozen=True)
class Job:
    """Everything that decides an image, except its seed."""

    model: Model
    sampler: Sampler
    grid: Grid
    label: int | None
    texts: Texts | None
    noise_device: str
    guidance: float | None = None  # of texts or classes

    @classmethod
    def of(cls, asked: Drawing, device: str) -> "Job":
        """Loads the model and makes the grid. Raises UserError for settings that do not fit."""
        model = asked.load(device)
        texts, grid = texts_and_grid(asked, model)
        return cls(
            model,
            sampler_on(asked, grid),
            grid,
            asked.class_,
            texts,
            asked.noise_device,
            asked.guidance,
        )

    def draw(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The noise and the labels of these seeds, drawn in EDM's order.

        The noise is float64, [B, *model.shape]. Labels are int64, [B]; None for a model without
        classes.
        """
        return self._draw(Generators(seeds, self.noise_device))

    def _draw(self, rng: Generators) -> tuple[Tensor, Tensor | None]:
        z = self.model.start(rng, self.grid[0])
        if not self.model.num_classes:
            return z, None
        labels = rng.randint(self.model.num_classes)
        return z, labels if self.label is None else torch.full_like(labels, self.label)

    def condition(self, seeds: Sequence[int], labels: Tensor | None) -> Condition:
        """The condition of the images of these seeds, whose labels `draw` found."""
        if not self.texts:
            return of_classes(labels, self.guidance)
        assert self.guidance is not None  # there is a text
        return self.texts(seeds, self.guidance)

    def sample(self, seeds: Sequence[int], step: Callable[[], object]) -> "Batch":
        """The end states of these seeds, and the number of network evaluations per image.

        `step` is called after every step of the sampler. Raises UserError if the end states are
        not finite.
        """
        rng = Generators(seeds, self.noise_device)
        z, labels = self._draw(rng)
        denoiser = Counted(self.model.denoiser(self.condition(seeds, labels)))
        sampler: Callable[..., Iterator[Tensor]] = self.sampler
        takes = inspect.signature(sampler).parameters
        if "noise" in takes:
            sampler = partial(sampler, noise=rng.randn_like)  # drawn after the start
        if "seeds" in takes:
            sampler = partial(sampler, seeds=seeds)  # it draws from generators of its own
        with torch.inference_mode():
            for state in sampler(denoiser, z, self.grid):
                step()
                z = state
        if not z.isfinite().all():
            smaller = " or a smaller sampler.gamma=" if "gamma" in takes else ""
            raise UserError(
                f"the sampler diverged (states are no longer finite): use more nfe={smaller}"
            )
        return Batch(seeds, z, labels, denoiser.nfe)


@dataclass(frozen=True)
class Batch:
    seeds: Sequence[int]
    states: Tensor | None  # [B, C, h, w]; None: the images were read from the disk
    labels: Tensor | None  # int64 [B]
    nfe: int | None  # None: not sampled but read from the disk
    images: Tensor | None = None  # uint8 [B, C, H, W]; None: not decoded


AHEAD = 2
"""Batches that may wait to be decoded and written while the next ones are sampled."""


@dataclass(frozen=True)
class Places:
    """Where a run stores its images and end states, and which of them it makes."""

    images: Folder | Shards | None
    latents: Latents
    keep_latents: bool = False
    decode: bool = True

    @classmethod
    def of(cls, root: Path, asked: Sampling) -> "Places":
        """The places of a run of `sample`."""
        images: Folder | Shards | None = None
        if asked.save == "shards":
            images = Shards(root, asked.wanted, asked.shard, asked.piece)
        elif asked.save in ("folder", "zip", "scratch"):
            images = Folder(root)
        kept = asked.save == "latents"
        return cls(images, Latents(root), kept, decode=asked.score or not kept)


@contextmanager
def _in_memory(batch: int) -> Iterator[None]:
    """Raises UserError, with a batch to ask for, if the GPU's memory is too small for this one.

    The batch is not made smaller by itself: on a GPU the last digits of an image depend on it.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"the GPU's memory is too small for {batch} images at a time: give "
            f"batch={max(batch // 2, 1)}, and run again; finished images are kept"
        ) from None


def stream(
    job: Job, batches: Iterable[Sequence[int]], places: Places, bar: tqdm
) -> Generator[Batch, None, None]:
    """This rank's batches: read from the disk if they are there, else sampled.

    The seeds are split into batches before the batches are shared among the ranks. An unfinished
    batch is made again completely. So no image depends on the number of processes or on a restart.

    A separate thread writes each batch while the next one is sampled. It also decodes the batch,
    unless sampling uses several cores of a CPU.
    """
    steps, total = len(job.grid) - 1, bar.total or 0

    def advance(images: float) -> None:
        bar.update(min(images, total - bar.n))  # the last batch of another rank may be shorter

    def start(seeds: Sequence[int]) -> Batch:
        everyone = len(seeds) * dist.world()  # the bar of rank 0 counts for all ranks
        images = places.images.read(seeds) if places.images else None
        states = places.latents.read(seeds) if images is None else None
        if images is not None or states is not None:
            advance(everyone)
            return Batch(seeds, states, job.draw(seeds)[1], None, images)
        with _in_memory(len(seeds)):
            return job.sample(seeds, partial(advance, everyone / steps))

    def decoded(batch: Batch) -> Tensor | None:
        """The images of a batch that has only states; None if they are there or not wanted."""
        if batch.images is not None or not places.decode:
            return None
        assert batch.states is not None
        with _in_memory(len(batch.seeds)):
            return job.model.decode(batch.states.to(job.model.device)).cpu()

    def finish(batch: Batch, images: Tensor | None) -> Batch:
        if places.keep_latents and batch.nfe is not None:
            assert batch.states is not None
            places.latents.write(batch.seeds, batch.states)
        images = decoded(batch) if images is None else images
        if images is None:
            return batch
        if places.images:
            places.images.write(batch.seeds, images, batch.labels)
        return replace(batch, images=images)

    # On a CPU, operations of two threads that both use several cores wait for each other.
    here = job.model.device.type == "cpu" and torch.get_num_threads() > 1
    with ThreadPoolExecutor(1, "decode") as worker:
        pending: deque[Future[Batch]] = deque()
        try:
            for seeds in batches:
                batch = start(seeds)
                pending.append(worker.submit(finish, batch, decoded(batch) if here else None))
                while len(pending) > AHEAD or (pending and pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
