#!/usr/bin/env python3
"""Our sampling against diffusers' on the same weights and noises, in turn.

    python bench/against_diffusers.py                # a tiny network of pixels, and mini_sd
    python bench/against_diffusers.py --ddpm         # DDPM's CIFAR-10 network
    python bench/against_diffusers.py --sd           # a network of Stable Diffusion 1.5's size

The weights are random, except mini_sd's. A network of pixels runs in DDIMPipeline, and with
DPM-Solver++(2M), which that pipeline does not take, in the loop of diffusers' documentation; the
latent network runs in StableDiffusionPipeline with both. Noise to uint8 pixels is timed. The words
after the options say how ours is run (dtype=bfloat16 compile=default …). Above 1 ours is faster.
diffusers has a process of its own, because ours changes how its process allocates memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from agreement import agreement
from measuring import Row, another_process, as_script, in_turn, options, ratio, report
from torch import Tensor

from bdia_exp.cli.configs import settings
from bdia_exp.jobs.sampling import Job, Texts
from bdia_exp.models.ddpm import DDPM, DDPMUNet, by_our_names
from bdia_exp.models.running import Running
from bdia_exp.samplers import grids
from bdia_exp.samplers.core import Grid, Sampler
from bdia_exp.samplers.loops import multistep
from bdia_exp.samplers.rules import ddim, dpmpp
from bdia_exp.samplers.schedules import DiscreteVP, linear_vp
from bdia_exp.sources import prompts

PROMPT, GUIDANCE = "a red dress", 7.5
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TINY = {"image_size": 16, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}


class Method(NamedTuple):
    """A sampler here, and the scheduler of diffusers that does the same."""

    scheduler: str
    options: dict[str, Any]
    sampler: Sampler
    grid: Callable[[int, DiscreteVP], Grid]


METHODS = {
    "DDIM": Method(
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False},
        multistep,
        partial(grids.leading, offset=0),
    ),
    "DPM-Solver++(2M)": Method(
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "final_sigmas_type": "sigma_min", "lower_order_final": True},
        partial(multistep, rule=dpmpp, final=ddim),
        partial(grids.time_uniform, whole=True),
    ),
}
MOST_STEPS = 14
"""From 15 steps on, DPM-Solver's last step in diffusers is of second order."""


def scheduler(method: Method, betas: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, method.scheduler)(**betas, **method.options)


def pixel_network(full: bool) -> tuple[Any, DDPMUNet]:
    """diffusers' network of pixels, and ours with the same weights."""
    from diffusers import UNet2DModel

    config = dict(settings("sample", ["model=ddim_cifar10"]).model.config["network"])
    config |= {} if full else TINY
    levels = range(len(config["ch_mult"]))
    attends = [config["image_size"] >> i in config["attn_resolutions"] for i in levels]
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=config["image_size"],
        block_out_channels=[config["ch"] * m for m in config["ch_mult"]],
        layers_per_block=config["num_res_blocks"],
        down_block_types=["AttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        up_block_types=["AttnUpBlock2D" if one else "UpBlock2D" for one in attends[::-1]],
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    our_net = DDPMUNet(**config)
    our_net.load_state_dict(by_our_names(net.state_dict()))
    return net.eval().requires_grad_(False), our_net


def in_pipeline(net: Any, made: Any, seeds: Sequence[int], steps: int) -> Tensor:
    """DDIMPipeline's images, uint8 [B, 3, H, W]."""
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline(net, made)
    pipeline.set_progress_bar_config(disable=True)
    rng = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(
        len(seeds), rng, num_inference_steps=steps, output_type="np", use_clipped_model_output=False
    ).images
    return torch.from_numpy((images * 255 + 0.5).astype("uint8")).movedim(-1, 1)


def in_loop(net: Any, made: Any, seeds: Sequence[int], steps: int) -> Tensor:
    """The images of the loop in diffusers' documentation, uint8 [B, 3, H, W]."""
    made.set_timesteps(steps)
    shape = (1, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    draw = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    x = torch.cat([*draw]).to(net.device)
    with torch.no_grad():
        for t in made.timesteps:
            x = made.step(net(x, t).sample, t, x).prev_sample
    return ((x / 2 + 0.5).clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu()


def ours(
    model: Any, method: Method, texts: Texts | None, seeds: Sequence[int], steps: int
) -> Tensor:
    grid = method.grid(steps, model.schedule)
    job = Job(model, method.sampler, grid, None, texts, "cpu", GUIDANCE)
    states = job.sample(seeds, lambda: None).states
    assert states is not None
    return model.decode(states)


@lru_cache(1)
def their_network(full: bool, device: str) -> Any:
    """diffusers' network of pixels, on a device."""
    return pixel_network(full)[0].to(device)


def their_pixels(full: bool, name: str, seeds: Sequence[int], steps: int, device: str) -> Tensor:
    """Images of diffusers' network of pixels, uint8 [B, 3, H, W]."""
    run = in_pipeline if name == "DDIM" else in_loop
    return run(their_network(full, device), scheduler(METHODS[name], LINEAR), seeds, steps)


@lru_cache(1)
def their_pipeline(folder: Path, device: str) -> Any:
    """diffusers' pipeline of the networks in a folder, on a device."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_latents(folder: Path, name: str, seeds: Sequence[int], steps: int, device: str) -> Tensor:
    """Images of the pipeline in a folder, uint8 [B, 3, H, W]."""
    pipeline = their_pipeline(folder, device)
    pipeline.scheduler = scheduler(METHODS[name], SCALED)
    shape = (pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in seeds]
    images = pipeline(
        [PROMPT] * len(seeds),
        latents=torch.stack(noises).to(device),
        guidance_scale=GUIDANCE,
        num_inference_steps=steps,
        output_type="np",
    ).images
    return torch.from_numpy((images * 255).astype("uint8")).movedim(-1, 1)


def saved_pipeline(words: Sequence[str], folder: Path) -> None:
    """A model's networks, in the folder that diffusers reads."""
    from diffusers import StableDiffusionPipeline

    model = settings("sample", words).load("cpu")
    StableDiffusionPipeline(
        **model.parts,
        tokenizer=model.tokenizer,
        scheduler=scheduler(METHODS["DDIM"], SCALED | {"steps_offset": 1}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def of_pixels(given: Any, elsewhere: Callable[..., Any]) -> Iterator[Row]:
    running = Running(**settings("sample", given.how).how(given.device))
    our_net = pixel_network(given.ddpm)[1]
    model = DDPM(running.ready(our_net, running.body), linear_vp(), {}, running)
    seeds = range(given.batch or 16)
    for name, method in METHODS.items():
        asked = given.ddpm, name, seeds, given.steps, given.device
        other = partial(elsewhere, their_pixels, *asked)
        our = partial(ours, model, method, None, seeds, given.steps)
        yield compared(f"pixels, {name}", other, our, given.rounds)


def of_latents(given: Any, elsewhere: Callable[..., Any]) -> Iterator[Row]:
    words = ["model=sd15", "model.checkpoint=random:0"] if given.sd else ["model=mini_sd"]
    seeds = range(given.batch or (2 if given.sd else 16))
    with TemporaryDirectory() as folder:
        saved_pipeline(words, Path(folder))
        model = settings("sample", [*words, *given.how]).load(given.device)
        texts = Texts(prompts.of_text(PROMPT))
        for name, method in METHODS.items():
            asked = Path(folder), name, seeds, given.steps, given.device
            other = partial(elsewhere, their_latents, *asked)
            our = partial(ours, model, method, texts, seeds, given.steps)
            yield compared(f"latents, {name}", other, our, given.rounds)


def compared(name: str, other: Callable[[], Tensor], our: Callable[[], Tensor], rounds: int) -> Row:
    """How the images agree, and the ratio of the times."""
    images = [other(), our()]  # also compiles, and chooses kernels
    times = in_turn({"theirs": other, "ours": our}, rounds)
    return {
        "case": name,
        "images": len(images[0]),
        **agreement(*images),
        **ratio(times["theirs"], times["ours"]),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--ddpm", action="store_true", help="DDPM's CIFAR-10 network")
    parser.add_argument("--sd", action="store_true", help="Stable Diffusion 1.5's networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="default: 16 of pixels, 2 of latents")
    parser.add_argument("--steps", type=int, default=10, choices=range(2, MOST_STEPS + 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("how", nargs="*", help="dtype=bfloat16 compile=default graphs=auto …")
    given = parser.parse_args(words)
    with another_process() as elsewhere:
        rows = [
            *([] if given.sd else of_pixels(given, elsewhere)),
            *([] if given.ddpm else of_latents(given, elsewhere)),
        ]
    report("against_diffusers", rows, given.out, how=given.how, steps=given.steps)


if __name__ == "__main__":
    as_script(main)
