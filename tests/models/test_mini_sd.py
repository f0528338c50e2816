"""The bundled text-to-image model: it draws what is asked for, and diffusers reads it too."""

import json

import pytest
import torch
from torch.nn.functional import max_pool2d

from bdia_exp.metrics.colours import TINTS, colour_of
from bdia_exp.metrics.features import garments
from bdia_exp.models import Text
from bdia_exp.models.edges import canny
from bdia_exp.models.stable_diffusion import StableDiffusion, load
from bdia_exp.samplers.grids import leading
from bdia_exp.samplers.loops import multistep
from bdia_exp.samplers.rules import ddim
from bdia_exp.seeds import Generators
from bdia_exp.sources.checkpoints import BUNDLED
from bdia_exp.store.image_sets import ImageSet

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
ASKED = {
    "a red dress": (3, "red"),
    "a pair of blue trousers": (1, "blue"),
    "a photo of a green ankle boot": (9, "green"),
    "yellow bag": (8, "yellow"),
    "a white sneaker": (7, "white"),
    "a purple t-shirt": (0, "purple"),
}


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return load("bundled:mini_sd")


def drawn(model: StableDiffusion, prompts: list[str], seeds: range, steps: int) -> torch.Tensor:
    grid = leading(steps, model.schedule)
    z = model.start(Generators(seeds), grid[0])
    *_, last = multistep(model.denoiser(Text(prompts, 4.0)), z, grid, rule=ddim)
    return last


def test_it_draws_what_is_asked_for(model):
    """10 steps, guidance 4, two seeds of each prompt."""
    prompts = [prompt for prompt in ASKED for _ in range(2)]
    images = model.decode(drawn(model, prompts, range(len(prompts)), 10))
    logits = garments()(images).logits
    seen = [*zip(logits.argmax(1).tolist(), colour_of(images).tolist(), strict=True)]
    wanted = [(k, [*TINTS].index(colour)) for k, colour in map(ASKED.__getitem__, prompts)]
    right = sum(a == b for a, b in zip(seen, wanted, strict=True))
    assert right >= 0.75 * len(prompts)  # chance is 1/80
    for start in range(0, len(prompts), 2):
        assert wanted[start] in seen[start : start + 2], prompts[start]


def test_the_autoencoder_keeps_an_image(model):
    image = model.decode(drawn(model, ["a red dress"], range(1), 10))
    again = model.decode(model.encode(image))
    assert (image.float() - again.float()).square().mean().sqrt() < 12
    assert colour_of(again).tolist() == [0]


def test_its_controlnet_follows_edges():
    """8 held-out pictures, 10 steps: most edges are where they should be, more than without it."""
    pytest.importorskip("cv2")
    pictures = ImageSet(BUNDLED / "fashion_edits.zip").read(range(0, 200, 25))
    edges, found = canny(pictures), {}
    for name in ("bundled:mini_controlnet", None):
        model = load("bundled:mini_sd", control=name and {"checkpoint": name})
        grid = leading(10, model.schedule)
        z = model.start(Generators(range(8)), grid[0])
        text = Text(["a garment"] * 8, 1.0, edges if name else None)
        *_, last = multistep(model.denoiser(text), z, grid, rule=ddim)
        near = max_pool2d((canny(model.decode(last))[:, :1] > 0).float(), 3, 1, 1) > 0
        found[name] = near[edges[:, :1] > 0].float().mean().item()
    assert found["bundled:mini_controlnet"] > 0.75
    assert found["bundled:mini_controlnet"] > found[None] + 0.2


def test_its_size_and_its_record():
    """Small enough for the package, with the command and the course of its training."""
    folders = [BUNDLED / "mini_sd", BUNDLED / "mini_controlnet"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 14e6
    about = json.loads((BUNDLED / "mini_sd.json").read_text())["training"]
    assert "scripts/train_mini_sd.py" in about["command"]
    for stage in ("autoencoder", "diffusion"):
        assert about[stage]["images_seen"] > 50_000
        assert about[stage]["loss"][-1][1] < about[stage]["loss"][0][1]


def test_diffusers_pipeline_reads_the_folder_and_draws_the_same(model):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = BUNDLED / "mini_sd"
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    prompt, (z,) = "a blue bag", [model.start(Generators([3]), leading(10, model.schedule)[0])]
    theirs = pipeline(
        prompt, latents=z.float(), guidance_scale=4.0, num_inference_steps=10, output_type="latent"
    ).images
    ours = drawn(model, [prompt], range(3, 4), 10)
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()
