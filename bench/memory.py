#!/usr/bin/env python3
"""Memory of networks as a ratio: measured peak to estimated peak (models/estimates.py).

    python bench/memory.py [--device cuda] [--out FOLDER]

The networks have the published sizes, in float32, with random weights. Weights are not counted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import as_script, options, report
from torch import Tensor, nn
from torch.profiler import profile

from bdia_exp.cli.configs import settings
from bdia_exp.models.ddpm import DDPMUNet
from bdia_exp.models.edm import EDMPrecond
from bdia_exp.models.estimates import measure

Call = Callable[..., Any]
UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def cases() -> Iterator[tuple[str, nn.Module, Call, tuple[Tensor, ...]]]:
    """Names and networks, the functions that call them, and their inputs."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for name, kind in {"edm_cifar10": EDMPrecond, "ddim_cifar10": DDPMUNet}.items():
        model = settings("sample", [f"model={name}"]).model.config
        yield name, kind(**model["network"]), nn.Module.__call__, (torch.randn(8, 3, 32, 32), one())
    noise, text = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 1024)
    unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    yield "Stable Diffusion's U-Net", unet, nn.Module.__call__, (noise, one(), text)
    yield "its decoder", vae, lambda vae, z: vae.decode(z).sample, (noise,)


def one() -> Tensor:
    return torch.ones(1)


def real(function: Callable[[], object], device: str) -> int:
    """Peak memory of a call in bytes, without what was allocated before."""
    with torch.inference_mode():
        if device == "cuda":
            function()  # the first call sets up libraries
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            return torch.cuda.max_memory_allocated() - before
        with profile(profile_memory=True) as profiled:
            function()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    device, rows = given.device, []
    for name, net, call, made in cases():
        net = net.eval().requires_grad_(False).to(device)
        inputs = [x.to(device) for x in made]
        taken = real(lambda net=net, call=call, inputs=inputs: call(net, *inputs), device)
        net, inputs = net.to("meta"), [x.to("meta") for x in inputs]
        work = measure(lambda net=net, call=call, inputs=inputs: call(net, *inputs))
        megabytes, ratio = round(work.peak / 1e6), taken / work.peak
        rows.append({"network": name, "estimated, MB": megabytes, "measured to estimated": ratio})
    report("memory", rows, given.out)


if __name__ == "__main__":
    as_script(main)
