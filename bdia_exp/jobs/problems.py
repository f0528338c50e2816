"""The problems that studies solve: exact densities and models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Compose
from bdia_exp.jobs.settings import Sampling
from bdia_exp.models import Model
from bdia_exp.models.toy import Gaussian, GaussianMixture
from bdia_exp.overrides import entries
from bdia_exp.samplers.core import CLEAN, Denoiser, Level
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.loops import heun
from bdia_exp.samplers.schedules import Schedule, linear_vp
from bdia_exp.seeds import Generators
from bdia_exp.store.records import Record

DENSITIES = {  # of states [B, 1, 2, 3]
    "gaussian": Gaussian(torch.linspace(-1, 1, 6).reshape(1, 2, 3), 0.7),
    "mixture": GaussianMixture(
        torch.linspace(-1.5, 1.5, 18).sin().reshape(3, 1, 2, 3) * 2,
        [0.3, 0.5, 0.8],
        [0.5, 0.3, 0.2],
    ),
}
ABOUT = {
    "gaussian": "one Gaussian in 6 dimensions",
    "mixture": "a mixture of three Gaussians in 6 dimensions",
}
IMAGE_STEPS = 10
"""Steps of EDM's sampler to make the images of a model."""


@dataclass(frozen=True)
class Problem:
    """A density or a model, with `count` states that are the same in every run."""

    name: str
    about: str
    count: int
    identity: Record
    schedule: Schedule
    denoiser: Denoiser
    device: str = "cpu"
    density: GaussianMixture | None = None
    model: Model | None = None

    def noise(self, level: Level) -> Tensor:
        """States to start from at a level, float64 [count, …]."""
        if self.density:
            return self._draw(level)
        assert self.model
        return self.model.start(Generators(range(self.count)), level)

    @cached_property
    def images(self) -> Tensor:
        """Clean states, float64 [count, …]; a model generates them, rounded to pixels."""
        if not self.model:
            return self._draw(CLEAN)
        grid = karras(IMAGE_STEPS, self.schedule)
        z = last(heun(self.denoiser, self.noise(grid[0]), grid))
        return self.model.encode(self.model.decode(z))

    def _draw(self, level: Level) -> Tensor:
        assert self.density
        generator = torch.Generator().manual_seed(0)
        return self.density.sample(self.count, level, generator=generator)


def problems_of(given: Sequence | str, count: int, device: str, compose: Compose) -> list[Problem]:
    """The problems with these names.

    A name is a key of DENSITIES or a model; overrides may follow: "edm model.checkpoint=PATH".
    Raises UserError for a name that is neither.
    """
    found: list[Problem] = []
    for label, overrides in entries("problems", given, "model").items():
        name = overrides[0].partition("=")[2]
        if name in DENSITIES:
            found.append(_density(name, count))
            continue
        try:
            asked = compose(overrides)
        except UserError as error:
            known = f"neither one of {', '.join(DENSITIES)} nor a model that can be chosen"
            raise UserError(f"problems={label} is {known}: {error}") from None
        found.append(_model(label, asked, count, device))
    return found


def _density(name: str, count: int) -> Problem:
    density = DENSITIES[name]
    shape = {key: getattr(density, key).tolist() for key in ("means", "stds", "weights")}
    return Problem(
        name,
        f"{ABOUT[name]}, its exact denoiser in float64",
        count,
        {"problem": name, "density": shape, "count": count},
        linear_vp(),
        density.denoiser(),
        density=density,
    )


def _model(label: str, asked: Sampling, count: int, device: str) -> Problem:
    model: Model = asked.model.make(**asked.how(device))
    rng = Generators(range(count))
    rng.randn(model.shape)  # a seed gives its noise, then its label
    labels = rng.randint(model.num_classes) if model.num_classes else None
    how = ", ".join(f"{key}={value}" for key, value in asked.rounding.items())
    described = {key: model.provenance[key] for key in ("description",) if key in model.provenance}
    return Problem(
        label,
        f"the model {label}, {how} of the network, labels of the seeds",
        count,
        {
            "problem": label,
            "model": asked.model.config,
            **asked.rounding,
            "checkpoint_sha256": model.provenance["sha256"],
            **described,
            "count": count,
        },
        model.schedule,
        model.denoiser(labels),
        device,
        model=model,
    )


def last(states: Iterable[Any]) -> Any:
    """The last of one or more states, without gradients; the others are not kept."""
    with torch.inference_mode():
        for state in states:
            found = state
    return found
