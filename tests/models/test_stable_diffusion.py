"""Stable Diffusion in miniature: its parts, and images that depend on nothing but their seed and
prompt."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bdia_exp.cli.configs import call, settings
from bdia_exp.cli.words import expand
from bdia_exp.models import Text, sd_files, stable_diffusion
from bdia_exp.models.estimates import measure
from bdia_exp.models.stable_diffusion import StableDiffusion, load
from bdia_exp.samplers.schedules import edm
from bdia_exp.store.image_sets import ImageSet
from tests.models.tiny_sd import CONTROL, PROMPT, configured, edit, latents, network, refusal, tiny

pytestmark = pytest.mark.usefixtures("stable_diffusion")


@pytest.mark.parametrize("seed", ["x", "", "-1"])
def test_random_weights_need_a_seed(seed):
    with refusal(f"checkpoint=random:{seed}: give a seed, such as random:0"):
        load(f"random:{seed}", network=network())


@pytest.mark.parametrize("size", [0, 8, 60, 72, -16])
def test_a_size_that_does_not_fit(size):
    with refusal(f"model.size={size} must be a multiple of 16"):
        load("random:0", network=network(), size=size, device="meta")


def test_a_size_that_nobody_knows():
    with refusal("give model.size="):
        load("random:0", network=network(unet={"sample_size": None}), device="meta")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "block_out_channels", "nonsense"),
        ("unet", "block_out_channels", [-32, 64]),
        ("unet", "down_block_types", ["Foo", "Bar"]),
        ("unet", "attention_head_dim", 0),
        ("vae", "layers_per_block", None),
        ("text_encoder", "hidden_size", "x"),
        ("text_encoder", "hidden_act", "foo"),
    ],
)
def test_a_description_of_no_network(part, key, value):
    with refusal(f"^{part} describes no network that can be built"):
        load("random:0", network=network(**{part: {key: value}}), device="meta")


def test_a_control_and_its_image_go_together(tmp_path):
    image = torch.zeros(1, 3, 64, 64).byte()
    with refusal("a ControlNet and its image go together: give control= with condition="):
        tiny().denoiser(Text([PROMPT], 3.0, image))
    with refusal("a ControlNet and its image go together"):
        load(**configured(*CONTROL), device="meta").denoiser(Text([PROMPT], 3.0))
    with refusal("a ControlNet and its image go together"):
        sample(tmp_path, "condition=tiny-controlnet", "images=1")


def test_a_control_of_another_model():
    control = sd_files.plain(configured(*CONTROL)["control"])
    control["network"]["cross_attention_dim"] = 48
    with refusal("this ControlNet is for another model: its cross_attention_dim is 48, the U-Net"):
        load("random:0", network=network(), size=64, control=control, device="meta")
    with refusal("model.control.network= is needed with random:0"):
        load("random:0", network=network(), control={"checkpoint": "random:0"}, device="meta")
    with refusal("nothing is at none"):
        load("random:0", network=network(), control={"checkpoint": "none"}, device="meta")


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_without_a_package(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with refusal(rf"{package} is needed here .*pip install '.\[sd\]'"):
        load("random:0", network=network())


# -- to latents and back -------------------------------------------------------------------------


def rows(net: torch.nn.Module, run: Callable[[], object]) -> list[int]:
    seen: list[int] = []
    hook = net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    run()
    hook.remove()
    return seen


@pytest.fixture
def alone(monkeypatch):
    """As for latents that are not small: on a CPU every image is computed alone."""
    monkeypatch.setattr(stable_diffusion, "SMALL", 0)


def of(prediction: str = "epsilon") -> StableDiffusion:
    """tiny-sd, made again."""
    model = tiny()
    return StableDiffusion(model.parts, model.tokenizer, model.schedule, prediction, 64, {})


def test_the_autoencoder_has_an_image_at_a_time(alone):
    model, images = of(), []
    vae = model.parts["vae"]
    assert rows(vae.decoder, lambda: images.append(model.decode(latents(3)))) == [1, 1, 1]
    assert rows(vae.encoder, lambda: model.encode(images[0])) == [1, 1, 1]


def test_small_images_go_through_in_full_rows():
    """They do not depend on their batch: each is the same in a batch of three and of one."""
    vae, unet, z = tiny().parts["vae"], tiny().parts["unet"], latents(3)
    level, text = tiny().schedule(501), Text([PROMPT], 3.0)
    assert rows(vae.decoder, lambda: tiny().decode(z)) == [16]
    assert rows(unet, lambda: tiny().denoiser(text)(z, level)) == [16]
    assert rows(unet, lambda: tiny().denoiser(text)(z.repeat(3, 1, 1, 1), level)) == [32]
    for make in (tiny().decode, lambda z: tiny().denoiser(text)(z, level).eps, tiny().pixels):
        assert make(z)[1:2].equal(make(z[1:2]))


def test_memory_of_decoding_does_not_grow_with_the_batch(alone):
    model = load("random:0", network=network(), size=64, device="meta")
    one, four = (
        measure(lambda n=n: model.decode(torch.empty(n, *model.shape, device="meta")))
        for n in (1, 4)
    )
    assert four.flops == 4 * one.flops
    assert one.peak < four.peak < 1.1 * one.peak  # the finished images


def test_pixels_are_truncated():
    """Stable Diffusion's programs do so: 255 · clamp((x + 1)/2), the fraction dropped."""
    images, pixels = (
        tiny().decode(latents(2)),
        torch.cat([*map(tiny().pixels, latents(2).split(1))]),
    )
    wanted = (255 * ((pixels + 1) / 2).clamp(0, 1)).floor()
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 64, 64)
    assert (images - wanted).abs().max() == 0
    assert images.float().std() > 1


def test_encoding_is_the_mean_times_the_scaling(alone):
    model = of()
    images = torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64).byte()
    with torch.no_grad():
        means = [
            model.parts["vae"].encode(image / 127.5 - 1).latent_dist.mean
            for image in images.split(1)
        ]
    found = model.encode(images)
    assert found.dtype == torch.float64
    assert found.equal((torch.cat(means) * 0.18215).double())
    assert model.encode(model.decode(found)).shape == found.shape
    assert model.decode(found).shape == images.shape


def test_states_are_float64():
    estimate = tiny().denoiser(Text([PROMPT], 3.0))(latents(), tiny().schedule(501))
    assert (estimate.z.dtype, estimate.eps.dtype) == (torch.float64, torch.float64)


def test_off_the_cpu_a_batch_goes_through_the_unet_as_one(alone):
    """As the meta device shows, which is treated as a GPU is."""
    model = load(**configured(*CONTROL), device="meta")
    shown = torch.zeros(1, 3, 64, 64, device="meta")
    z = torch.empty(3, *model.shape, dtype=torch.float64, device="meta")
    for guidance, asked in ((3.0, 6), (1.0, 3)):
        denoiser = model.denoiser(Text([PROMPT] * 3, guidance, shown))
        for part in ("unet", "controlnet"):
            assert rows(model.parts[part], lambda d=denoiser: d(z, model.schedule(501))) == [asked]


# -- predictions and levels ----------------------------------------------------------------------


def test_v_prediction(alone):
    """x̂ = α z − σ v."""
    model, of_v = tiny(), of("v_prediction")
    level, z = model.schedule(501), latents()
    with torch.no_grad():
        time = torch.tensor(501)
        v = model.parts["unet"](z.float(), time, model.embed([PROMPT])).sample.double()
    found = of_v.denoiser(Text([PROMPT]))(z, level).x
    torch.testing.assert_close(found, level.alpha * z - level.sigma * v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edms_levels(prediction):
    """A state of EDM's is the state of the VP level with the same σ/α, scaled: so is its x̂."""
    denoiser, level = of(prediction).denoiser(Text([PROMPT], 3.0)), tiny().schedule(501)
    found = denoiser(latents() / level.alpha, edm(level.rho))
    torch.testing.assert_close(found.x, denoiser(latents(), level).x, rtol=1e-5, atol=1e-5)


def test_levels_beyond_the_schedule_are_refused():
    with refusal("this network was trained for noise up to sigma=14.6"):
        tiny().denoiser(Text([PROMPT]))(latents(), edm(80.0))


# -- runs ----------------------------------------------------------------------------------------

QUICK = ("model=tiny-sd", "sampler=bdia_ddim", "nfe=3", "device=cpu", "prompts_seed=null")


def sample(out: Path, *words: str) -> dict[str, Any]:
    (quoted,) = expand("sample", (*QUICK, f"out={out}", *words), multirun=False)
    return call("sample", quoted)


def pngs(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(root.rglob("images/**/*.png"))}


@pytest.fixture(scope="module")
def two_prompts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "two.txt"
    path.write_text("a red fox in the snow\ntwo cups of tea\n")
    return f"prompts={path}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, two_prompts) -> Path:
    """A run of five images, the one that every other run must equal."""
    root = tmp_path_factory.mktemp("whole")
    record = sample(root, two_prompts, "images=5", "batch=2")
    assert (record["nfe"], record["rows_per_evaluation"], record["sampled"]) == (3, 2, 5)
    assert len(set(pngs(root).values())) == 5
    return root


@pytest.mark.parametrize("batch", [1, 5])
def test_images_do_not_depend_on_the_batch(whole, two_prompts, tmp_path, batch):
    sample(tmp_path, two_prompts, "images=5", f"batch={batch}")
    assert pngs(tmp_path) == pngs(whole)


def test_an_image_is_that_of_its_seed_and_prompt(whole, two_prompts, tmp_path):
    sample(tmp_path / "three", two_prompts, "seeds=3,1")
    assert pngs(tmp_path / "three").items() <= pngs(whole).items()
    sample(tmp_path / "alone", "prompts=null", "prompt=two cups of tea", "seeds=2,3")
    alone, all_five = pngs(tmp_path / "alone"), pngs(whole)
    assert alone["000003.png"] == all_five["000003.png"]
    assert alone["000002.png"] != all_five["000002.png"]  # that seed has the other prompt there


def test_a_run_that_lost_images_makes_the_same_again(whole, two_prompts, tmp_path):
    sample(tmp_path, two_prompts, "images=5", "batch=2")
    for name in ("000001.png", "000004.png"):
        next(tmp_path.rglob(name)).unlink()
    edit(tmp_path / "record.json", complete=False)
    record = sample(tmp_path, two_prompts, "images=5", "batch=2")
    assert record["sampled"] == 3, "the two batches that were not whole"
    assert pngs(tmp_path) == pngs(whole)


def test_latents_are_decoded_later_without_the_unet(whole, two_prompts, tmp_path, monkeypatch):
    words = (two_prompts, "images=5", "batch=2")
    calls: list[float] = []
    asked = StableDiffusion._unet

    def counted(self, x, time, *others):
        calls.append(time)
        return asked(self, x, time, *others)

    monkeypatch.setattr(StableDiffusion, "_unet", counted)
    first = sample(tmp_path, *words, "save=latents")
    assert (first["nfe"], len(calls)) == (3, 3 * 3)
    assert not pngs(tmp_path)
    then = sample(tmp_path, *words, "save=folder")
    assert (then["nfe"], then["sampled"], len(calls)) == (3, 0, 3 * 3)
    assert pngs(tmp_path) == pngs(whole)


def test_edms_grid(tmp_path):
    words = ("prompts=null", f"prompt={PROMPT}", "images=1", "sampler=edm", "grid=karras")
    assert sample(tmp_path, *words, "grid.sigma_max=14")["nfe"] == 3
    assert len(pngs(tmp_path)) == 1
    with refusal("set grid.sigma_max=14.6"):
        sample(tmp_path / "more", *words)


def test_a_control_that_is_followed(tmp_path):
    """The whole way from a picture of another size."""
    picture = Image.new("RGB", (90, 70))
    picture.paste((255, 255, 255), (30, 20, 60, 50))
    picture.save(tmp_path / "picture.png")
    words = ("condition=tiny-controlnet", "images=1", f"control={tmp_path / 'picture.png'}")
    found = {}
    for scale in (1.0, 0.5, 0.0):
        out = tmp_path / str(scale)
        record = sample(out, *words, f"model.control.scale={scale}")
        assert record["model"]["control_sha256"]
        assert record["control_pixels"]
        found[scale] = ImageSet(out).read([0]).float()
    sample(tmp_path / "none", "images=1")
    assert found[0.0].equal(ImageSet(tmp_path / "none").read([0]).float())
    assert (found[1.0] - found[0.0]).abs().mean() > (found[0.5] - found[0.0]).abs().mean() > 0


# -- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("sd21_base", (4, 64, 64), (865_910_724, 83_653_863, 340_387_840)),
        ("sd21", (4, 96, 96), (865_910_724, 83_653_863, 340_387_840)),
        ("sd15", (4, 64, 64), (859_520_964, 83_653_863, 123_060_480)),
        ("sd14", (4, 64, 64), (859_520_964, 83_653_863, 123_060_480)),
    ],
)
def test_published_sizes(name, shape, sizes):
    made = settings("sample", [f"model={name}"]).model.make(device="meta")
    assert made.shape == shape
    counts = {
        title: sum(parameter.numel() for parameter in net.parameters())
        for title, net in made.networks.items()
    }
    assert counts == dict(zip(("U-Net", "autoencoder", "text encoder"), sizes, strict=True))
    assert made.prediction == ("v_prediction" if name == "sd21" else "epsilon")
