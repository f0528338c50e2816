"""Stable Diffusion in miniature."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.models import Text, sd_files
from bdia_exp.models.stable_diffusion import StableDiffusion, load

PROMPT = "a red fox in the snow"


@cache
def configured(*words: str) -> dict[str, Any]:
    return dict(settings("sample", ["model=tiny-sd", *words]).model.make.keywords)


def network(**changes: dict[str, Any]) -> dict[str, Any]:
    """tiny-sd's, with other values in its parts."""
    found = sd_files.plain(configured()["network"])
    for part, keys in changes.items():
        found[part] = found[part] | keys if isinstance(keys, dict) else keys
    return found


CONTROL = ("condition=tiny-controlnet", "control=none.png")
SD1 = partial(
    network,
    unet={"use_linear_projection": False, "attention_head_dim": 8},
    text_encoder={"hidden_act": "quick_gelu"},
    pad_token="<|endoftext|>",
)
SD2 = network
DEEP = partial(network, text_encoder={"num_hidden_layers": 23})


@cache
def tiny(kind: Callable[..., dict] = SD2) -> StableDiffusion:
    """With random weights that half precision can hold, and none of them zero or one."""
    made = load("random:0", network=kind(), size=64)
    rng = torch.Generator().manual_seed(1)
    for net in made.parts.values():
        for parameter in net.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=rng)
            parameter.copy_(parameter.half())
    return made


def latents(count: int = 1) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3)).double()


def outputs(model: StableDiffusion) -> list[Tensor]:
    """What each network makes."""
    level = model.schedule(501)
    images = model.decode(latents())
    return [
        model.embed([PROMPT]),
        model.denoiser(Text([PROMPT], 3.0))(latents(), level).eps,
        model.pixels(latents()),
        images,
        model.encode(images),
    ]


def same(model: StableDiffusion, other: StableDiffusion) -> bool:
    return all(a.equal(b) for a, b in zip(outputs(model), outputs(other), strict=True))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


@contextmanager
def refusal(words: str):
    """One sentence that holds these words."""
    with pytest.raises(UserError, match=words) as caught:
        yield
    assert "\n" not in str(caught.value)


def saved(folder: Path, variant: str | None = None) -> Path:
    """tiny-sd as diffusers saves it."""
    model, scheduler = tiny(), {"_class_name": "DDIMScheduler", **network()["scheduler"]}
    for part, net in model.parts.items():
        net.save_pretrained(folder / part, variant=variant)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return folder
