#!/usr/bin/env python3
"""Our sampling against the loop of EDM's own generate.py: same weights, same seeds, in turn.

    python bench/against_edm.py --edm PATH [--tiny] [--device cuda] [dtype=bfloat16 compile=default]

PATH is a checkout of NVlabs/edm that you have; its network and its sampler are imported from there,
and its licence is yours to keep. The networks have the published architectures and random weights.
Seeds to uint8 pixels are timed. The words after the options say how ours is run; without them the
images must agree: at most one level, on at most 0.1 % of the pixels. The ratio is the time of
EDM's loop to that of ours, so above 1 ours is faster. EDM's loop has a process of its own, because
ours changes how its process allocates memory.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from agreement import agreement, agrees
from measuring import Row, another_process, as_script, in_turn, options, ratio, report
from torch import Tensor, nn

from bdia_exp.cli.configs import settings
from bdia_exp.jobs.sampling import Job
from bdia_exp.models.edm import EDM, EDMPrecond
from bdia_exp.models.running import Running
from bdia_exp.samplers.grids import karras
from bdia_exp.samplers.loops import heun
from bdia_exp.samplers.schedules import linear_vp

NETWORKS = {
    "SongUNet CIFAR-10": "edm_cifar10",
    "SongUNet FFHQ": "edm_ffhq",
    "ADM ImageNet-64": "edm_imagenet64",
}
SMALL = {"img_resolution": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
"""What --tiny changes; the channels are 16, or 64 for ADM, whose heads have 64."""


def architecture(model: str, tiny: bool) -> dict[str, Any]:
    """The arguments of the published network, or of a small one of its kind."""
    published = dict(settings("sample", [f"model={model}"]).model.config["network"])
    if not tiny:
        return published
    channels = 64 if published["model_type"] == "DhariwalUNet" else 16
    return published | SMALL | {"model_channels": channels}


def fill(net: nn.Module) -> None:
    """Random weights: EDM starts its last layers at zero, and then every network is the same."""
    torch.manual_seed(0)
    for weight in net.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


def imported(edm: Path) -> tuple[ModuleType, ModuleType]:
    """EDM's modules `generate` and `training.networks`, from a checkout."""
    if not (edm / "generate.py").is_file():
        sys.exit(f"{edm} is no checkout of NVlabs/edm: give the folder that has generate.py")
    sys.path.insert(0, str(edm))
    return importlib.import_module("generate"), importlib.import_module("training.networks")


@lru_cache(1)
def their_network(edm: Path, network: str, device: str) -> tuple[ModuleType, Any]:
    """EDM's generate.py and its network, from the arguments as JSON, with random weights."""
    generate, networks = imported(edm)
    torch.manual_seed(0)  # for the biases
    net = networks.EDMPrecond(**json.loads(network))
    fill(net)
    return generate, net.eval().requires_grad_(False).to(device)


def theirs(edm: Path, network: str, seeds: Sequence[int], steps: int, device: str) -> Tensor:
    """Images as generate.py makes them, uint8 [B, C, R, R], through EDM's own sampler."""
    generate, net = their_network(edm, network, device)
    rng = generate.StackedRandomGenerator("cpu", seeds)
    shape = [net.img_channels, net.img_resolution, net.img_resolution]
    latents = rng.randn([len(seeds), *shape]).to(device)
    labels = None
    if net.label_dim:
        drawn = rng.randint(net.label_dim, size=[len(seeds)])
        labels = nn.functional.one_hot(drawn, net.label_dim).to(latents)
    with torch.no_grad():
        images = generate.edm_sampler(net, latents, labels, num_steps=steps)
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu()


def ours(model: EDM, seeds: Sequence[int], steps: int) -> Tensor:
    job = Job(model, heun, karras(steps, model.schedule), None, None, "cpu")
    states = job.sample(seeds, lambda: None).states
    assert states is not None
    return model.decode(states)


def compared(
    name: str, about: dict[str, Any], elsewhere: Callable[..., Any], given: Any, running: Running
) -> Row:
    """One network: how the images agree, and the ratio of the times."""
    network = json.dumps(about)
    state = their_network(given.edm, network, "cpu")[1].state_dict()
    our_net = EDMPrecond(**about)
    our_net.load_state_dict({key: state[key] for key in our_net.state_dict()})
    if running.dtype != "auto":
        our_net.body_dtype = running.body
    model = EDM(running.ready(our_net), linear_vp(), {}, running)
    seeds, steps = range(given.batch), given.steps
    runs: dict[str, Callable[[], Tensor]] = {
        "theirs": partial(elsewhere, theirs, given.edm, network, seeds, steps, given.device),
        "ours": partial(ours, model, seeds, steps),
    }
    images = [run() for run in runs.values()]  # also compiles, and chooses kernels
    times = in_turn(runs, given.rounds)
    return {
        "network": name,
        **agreement(*images),
        **ratio(times["theirs"], times["ours"]),
        "seconds of theirs": min(times["theirs"]),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--edm", type=Path, required=True, help="a checkout of NVlabs/edm")
    parser.add_argument("--tiny", action="store_true", help="small networks")
    parser.add_argument("--only", choices=[*NETWORKS.values()], help="one of the networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("how", nargs="*", help="dtype=bfloat16 compile=default graphs=auto …")
    given = parser.parse_args(words)
    asked = settings("sample", given.how)
    running = Running(**asked.how(given.device))
    imported(given.edm)
    rows = []
    with another_process() as elsewhere:
        for name, model in NETWORKS.items():
            if given.only in (None, model):
                about = architecture(model, given.tiny)
                rows.append(compared(name, about, elsewhere, given, running))
    report("against_edm", rows, given.out, how=given.how, batch=given.batch, steps=given.steps)
    if not given.how and not all(map(agrees, rows)):
        sys.exit("the images do not agree")


if __name__ == "__main__":
    as_script(main)
