"""Whole runs agree with diffusers' pipelines: one tiny Stable Diffusion, one noise, one prompt.

A pipeline is assembled from the very modules of ours, with random weights. What differs is written
twice: prompts to conditions, guidance, levels, steps, the way to pixels. diffusers keeps its state
in float32, ours is float64.

`python -m tests.models.test_diffusers_pipelines` prints the table of docs/stable-diffusion.md.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bdia_exp.cli.configs import settings
from bdia_exp.models import Text, stable_diffusion
from bdia_exp.models.stable_diffusion import StableDiffusion
from bdia_exp.samplers import grids
from bdia_exp.samplers.core import Counted, Grid, Sampler
from bdia_exp.samplers.inversion import DDIMInversion
from bdia_exp.samplers.loops import multistep, pndm
from bdia_exp.samplers.rules import ddim, dpmpp
from bdia_exp.samplers.schedules import DiscreteVP

pytestmark = pytest.mark.usefixtures("stable_diffusion")

PROMPTS = ["a red fox in the snow", "two cups of tea, a photograph"]
BOUND = 1e-5
STEPS = 10
CONTROL_SCALE = 0.7


@cache
def loaded(control: bool) -> StableDiffusion:
    words = ["condition=tiny-controlnet", "control=none.png"] if control else []
    return settings("sample", ["model=tiny-sd", *words]).model.make()


def tiny(prediction: str = "epsilon", control: bool = False) -> StableDiffusion:
    """The model that both run; random weights can be taken for either prediction."""
    parts, of = loaded(control).parts, loaded(control)
    return StableDiffusion(parts, of.tokenizer, of.schedule, prediction, 64, {}, CONTROL_SCALE)


def noise(count: int) -> Tensor:
    return torch.randn(count, *tiny().shape, generator=torch.Generator().manual_seed(7))


def picture() -> np.ndarray:
    """Lines and a surface, uint8 [64, 64, 3]."""
    y, x = np.mgrid[:64, :64]
    return np.stack([255 * (x % 16 == 0), 4 * y, 255 * (x > y)], -1).astype(np.uint8)


# -- the two of them -----------------------------------------------------------------------------


class Case(NamedTuple):
    """A scheduler of diffusers with its options, and what it is here."""

    name: str
    scheduler: str
    options: dict[str, Any]
    grid: str
    levels: Callable[[int, DiscreteVP], Grid]
    sampler: Sampler
    steps: int = STEPS
    prediction: str = "epsilon"
    guidance: float = 7.5
    prompts: int = 1
    control: bool = False
    inverse: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.grid}, {self.steps}".replace("`", "")


class Made(NamedTuple):
    latents: Tensor
    images: Tensor
    """[B, 3, H, W], 0 to 1."""


def pipeline(case: Case) -> Any:
    import diffusers

    model = tiny(case.prediction, case.control)
    scheduler = partial(
        getattr(diffusers, f"{case.scheduler}Scheduler"),
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=case.prediction,
        **case.options,
    )
    kind = "StableDiffusionControlNetPipeline" if case.control else "StableDiffusionPipeline"
    made = getattr(diffusers, kind)(
        **model.parts,
        tokenizer=model.tokenizer,
        scheduler=scheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.scheduler = scheduler()  # given at once, it would be changed to steps_offset=1
    made.set_progress_bar_config(disable=True)
    return made


def theirs(case: Case) -> Made:
    last: dict[str, Tensor] = {}

    def keep(pipe, step, time, now):
        last.update(now)
        return now

    shown: dict[str, Any] = {}
    if case.control:
        shown["image"] = Image.fromarray(picture())
        shown["controlnet_conditioning_scale"] = CONTROL_SCALE
    images = pipeline(case)(
        prompt=PROMPTS[: case.prompts],
        latents=noise(case.prompts),
        guidance_scale=case.guidance,
        num_inference_steps=case.steps,
        height=64,
        width=64,
        output_type="np",
        callback_on_step_end=keep,
        **shown,
    ).images
    return Made(last["latents"], torch.from_numpy(images).movedim(-1, 1))


def ours(case: Case) -> Made:
    model = tiny(case.prediction, case.control)
    shown = torch.from_numpy(picture()).movedim(-1, 0)[None] if case.control else None
    denoiser = model.denoiser(Text(PROMPTS[: case.prompts], case.guidance, shown))
    grid, z = case.levels(case.steps, model.schedule), noise(case.prompts).double()
    with torch.inference_mode():
        if case.inverse:
            *_, kept = DDIMInversion().encode(denoiser, z, grid)
            z = kept["z"]
        else:
            *_, z = case.sampler(denoiser, z, grid)
    return Made(z, ((model.pixels(z) + 1) / 2).clamp(0, 1))


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest one, as a fraction of the largest entry."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def differences(case: Case) -> list[float]:
    return [difference(*pair) for pair in zip(ours(case), theirs(case), strict=True)]


# -- the methods ---------------------------------------------------------------------------------


def one_more_step(steps: int, schedule: DiscreteVP) -> Grid:
    """Times i⌊T/(N+1)⌋ + 1, i = 1 … N, and ᾱ_0: the spacing that DPM-Solver calls leading."""
    jump = len(schedule) // (steps + 1)
    return (*(schedule(i * jump + 1) for i in range(steps, 0, -1)), schedule(0))


def of_diffusers(spacing: str, final: str = "first", offset: int = 0) -> dict[str, Any]:
    """Options of DDIM's scheduler."""
    return {
        "timestep_spacing": spacing,
        "set_alpha_to_one": final == "clean",
        "steps_offset": offset,
        "clip_sample": False,
    }


def dpm_options(spacing: str, final: str, **more: Any) -> dict[str, Any]:
    return {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "timestep_spacing": spacing,
        "final_sigmas_type": final,
    } | more


leading_clean = partial(grids.leading, final="clean")
trailing_clean = partial(grids.trailing, final="clean")
whole = partial(grids.time_uniform, whole=True)
plms = partial(pndm, start="heun", order=4)
dpm_2m = partial(multistep, rule=dpmpp)
dpm_2m_low = partial(multistep, rule=dpmpp, final=ddim)
SD = of_diffusers("leading", offset=1)
PLMS = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}

DDIM = Case("DDIM", "DDIM", SD, "`leading`", grids.leading, multistep)
CASES = [
    DDIM,
    DDIM._replace(
        options=of_diffusers("leading", "clean", 1), grid="`leading`, clean", levels=leading_clean
    ),
    DDIM._replace(
        options=of_diffusers("leading"),
        grid="`leading`, offset 0",
        levels=partial(grids.leading, offset=0),
    ),
    DDIM._replace(options=of_diffusers("trailing"), grid="`trailing`", levels=grids.trailing),
    DDIM._replace(
        options=of_diffusers("trailing", "clean"), grid="`trailing`, clean", levels=trailing_clean
    ),
    DDIM._replace(name="DDIM, v-prediction", prediction="v_prediction"),
    DDIM._replace(name="DDIM, no guidance", guidance=1.0),
    DDIM._replace(name="DDIM, two prompts", prompts=2),
    Case("PNDM (PLMS)", "PNDM", PLMS, "`leading`", grids.leading, plms),
    Case(
        "DPM-Solver++ 2M, last step first-order",
        "DPMSolverMultistep",
        dpm_options("linspace", "sigma_min"),
        "`time_uniform`, whole",
        whole,
        dpm_2m_low,
    ),
    Case(
        "DPM-Solver++ 2M, all steps second-order",
        "DPMSolverMultistep",
        dpm_options("linspace", "sigma_min"),
        "`time_uniform`, whole",
        whole,
        dpm_2m,
        steps=16,  # lower_order_final is for fewer than 15
    ),
    Case(
        "DPM-Solver++ 2M, v-prediction",
        "DPMSolverMultistep",
        dpm_options("linspace", "sigma_min"),
        "`time_uniform`, whole",
        whole,
        dpm_2m_low,
        prediction="v_prediction",
    ),
    Case(
        "DPM-Solver++ 2M, last step first-order",
        "DPMSolverMultistep",
        dpm_options("trailing", "sigma_min"),
        "`trailing`",
        grids.trailing,
        dpm_2m_low,
    ),
    Case(
        "DPM-Solver++ 2M, last step first-order",
        "DPMSolverMultistep",
        dpm_options("trailing", "zero"),
        "`trailing`, clean",
        trailing_clean,
        dpm_2m_low,
    ),
    Case(
        "DPM-Solver++ 2M, last step first-order",
        "DPMSolverMultistep",
        dpm_options("linspace", "zero"),
        "`time_uniform`, whole, clean",
        partial(grids.time_uniform, whole=True, final="clean"),
        dpm_2m_low,
    ),
    Case(
        "DPM-Solver++ 2M, last step first-order",
        "DPMSolverMultistep",
        dpm_options("leading", "sigma_min", steps_offset=1),
        "times i⌊T/(N+1)⌋ + 1 (a)",
        one_more_step,
        dpm_2m_low,
    ),
    DDIM._replace(name="DDIM, ControlNet", control=True),
]
INVERSE = Case(
    "DDIM's inversion",
    "DDIMInverse",
    SD,
    "`leading`",
    grids.leading,
    multistep,
    guidance=1.0,
    inverse=True,
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pipeline_of_the_same_method_agrees(case):
    latents, images = differences(case)
    assert latents <= BOUND
    assert images <= BOUND


def test_ddim_inversion_agrees():
    assert difference(ours(INVERSE).latents, theirs(INVERSE).latents) <= BOUND


@pytest.fixture(scope="module")
def of_ddim():
    return theirs(DDIM).latents


@pytest.mark.parametrize(
    "other",
    [
        DDIM._replace(levels=leading_clean),
        DDIM._replace(levels=partial(grids.leading, offset=0)),
        DDIM._replace(sampler=dpm_2m),
        DDIM._replace(guidance=7.0),
        DDIM._replace(prediction="v_prediction"),
    ],
)
def test_another_setting_of_ours_does_not_agree(other, of_ddim):
    """So the tests above can tell settings apart."""
    assert difference(ours(other).latents, of_ddim) > 100 * BOUND


def test_a_control_changes_the_images():
    controlled = ours(DDIM._replace(control=True))
    assert difference(controlled.latents, ours(DDIM).latents) > 100 * BOUND


def test_the_latents_compared_are_the_pipelines_own(of_ddim):
    latents = pipeline(DDIM)(
        prompt=PROMPTS[:1],
        latents=noise(1),
        num_inference_steps=STEPS,
        height=64,
        width=64,
        output_type="latent",
    ).images
    assert latents.equal(of_ddim)


# -- what it costs -------------------------------------------------------------------------------


def rows(case: Case, run: Callable[[Case], Made]) -> Sequence[int]:
    """The rows of each call of the U-Net."""
    seen: list[int] = []
    unet = tiny(control=case.control).parts["unet"]
    hook = unet.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    run(case)
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (DDIM, [2] * 4),
        (DDIM._replace(guidance=1.0), [1] * 4),
        (DDIM._replace(control=True), [2] * 4),
        (CASES[8], [2] * 5),
        (CASES[9], [2] * 4),
    ],
    ids=str,
)
def test_an_evaluation_is_one_call_of_two_rows_an_image(case, wanted, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "SMALL", 0)  # else the rows are filled up
    case = case._replace(steps=4)
    assert rows(case, ours) == wanted
    assert rows(case, theirs) == wanted


def test_on_a_cpu_two_images_are_two_calls(monkeypatch):
    """So that neither depends on the other; diffusers has both in one. Small ones are filled up."""
    case = DDIM._replace(prompts=2, steps=3)
    assert rows(case, ours) == [16] * 3
    monkeypatch.setattr(stable_diffusion, "SMALL", 0)
    assert rows(case, ours) == [2, 2] * 3
    assert rows(case, theirs) == [4] * 3


def test_evaluations_are_counted_an_image():
    counted = Counted(tiny().denoiser(Text(PROMPTS, 7.5)))
    grid = grids.leading(3, tiny().schedule)
    with torch.inference_mode():
        *_, _ = multistep(counted, noise(2).double(), grid)
    assert counted.nfe == 3


# -- the table -----------------------------------------------------------------------------------


def line(case: Case) -> str:
    latents, images = differences(case)
    shown = "–" if case.inverse else f"{images:.0e}"
    return f"| {case.name} | {case.grid} | {case.steps} | {latents:.0e} | {shown} |"


if __name__ == "__main__":
    print("| method | grid | steps | latents | images |")
    print("|---|---|---|---|---|")
    for case in [*CASES, INVERSE]:
        print(line(case), flush=True)
