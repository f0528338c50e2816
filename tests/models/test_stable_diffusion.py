"""Stable Diffusion in miniature: every kind of file, its errors, and images that depend on nothing
but their seed and prompt."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdia_exp import checkpoints, cli
from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.estimates import measure
from bdia_exp.models import Text, sd_files
from bdia_exp.models.stable_diffusion import StableDiffusion, load
from bdia_exp.schedules import edm
from bdia_exp.store import ImageSet
from tests.models import single_files

pytestmark = pytest.mark.usefixtures("stable_diffusion")

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


# -- folders -------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def saved(folder: Path, variant: str | None = None) -> Path:
    """tiny-sd as diffusers saves it."""
    model, scheduler = tiny(), {"_class_name": "DDIMScheduler", **network()["scheduler"]}
    for part, net in model.parts.items():
        net.save_pretrained(folder / part, variant=variant)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("promised", [network(), None], ids=["tiny-sd", "sd"])
def test_a_folder_of_diffusers(folder, promised):
    found = load(str(folder), network=promised)
    assert same(found, tiny())
    assert found.image_shape == (3, 64, 64)
    assert found.provenance["sha256"] == checkpoints.sha256(folder)
    assert found.provenance["parameters"] == tiny().provenance["parameters"]


def test_a_folder_without_an_index(folder, copy):
    (copy / "model_index.json").unlink()
    assert load(str(copy)).provenance["sha256"] == checkpoints.sha256(folder)


def test_a_folder_with_nothing_but_half_precision(tmp_path):
    where = saved(tmp_path, variant="fp16")
    assert {file.name for file in where.rglob("*.safetensors")} == {
        "diffusion_pytorch_model.fp16.safetensors",
        "model.fp16.safetensors",
    }
    assert same(load(str(where)), tiny())


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def as_of_2022(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that diffusers and transformers wrote then."""
    if part == "text_encoder":
        prefix = "text_model."
        state = {prefix + name.removeprefix(prefix): tensor for name, tensor in state.items()}
        return state | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}
    for new, old in OLD_ATTENTION.items() if part == "vae" else ():
        state = {name.replace(f"0.{new}.", f"0.{old}."): tensor for name, tensor in state.items()}
    return state


def test_an_old_folder_of_bin_files_with_old_names(copy):
    for part, file in (("unet", "diffusion_"), ("vae", "diffusion_"), ("text_encoder", "")):
        (weights,) = (copy / part).glob("*.safetensors")
        state = as_of_2022(part, load_file(weights))
        torch.save(state, copy / part / f"{file}pytorch_model.bin")
        weights.unlink()
    assert any(
        ".proj_attn." in name for name in as_of_2022("vae", tiny().parts["vae"].state_dict())
    )
    assert same(load(str(copy)), tiny())


# -- single files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [(SD1, single_files.clip), (SD2, single_files.open_clip), (DEEP, single_files.open_clip)],
    ids=["Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion 2, 23 layers"],
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_single_file(tmp_path, kind, text, suffix):
    path, state = tmp_path / f"sd.{suffix}", single_files.single_file(tiny(kind).parts, text)
    if suffix == "ckpt":
        torch.save({"state_dict": state, "global_step": 7, "callbacks": {"a": 1.5}}, path)
    else:
        save_file(state, path)
    found = load(str(path), network=kind(), size=64)
    assert same(found, tiny(kind))
    assert found.provenance["sha256"] == checkpoints.sha256(path)


def test_the_names_of_single_files_are_the_published_ones():
    """A few of those that everybody's files have."""
    one = single_files.single_file(tiny(SD1).parts, single_files.clip)
    two = single_files.single_file(tiny(DEEP).parts, single_files.open_clip)
    conv, linear = (
        state["model.diffusion_model.input_blocks.1.1.proj_in.weight"] for state in (one, two)
    )
    assert (conv.ndim, linear.ndim) == (4, 2)
    assert {
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.1.1.conv.weight",
        "model.diffusion_model.output_blocks.3.0.skip_connection.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight",
    } <= one.keys()
    assert {
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.bias",
        "cond_stage_model.model.ln_final.weight",
    } <= two.keys()


def test_the_control_may_come_from_a_folder(tmp_path):
    model = load(**configured(*CONTROL))
    model.parts["controlnet"].save_pretrained(tmp_path)
    again = configured(*CONTROL) | {"control": {"checkpoint": str(tmp_path), "scale": 1.0}}
    text = Text([PROMPT], 3.0, torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64).byte())
    found, wanted = (
        each.denoiser(text)(latents(), each.schedule(501)).eps for each in (load(**again), model)
    )
    assert found.equal(wanted)
    plain = load(**configured()).denoiser(Text([PROMPT], 3.0))
    assert not plain(latents(), model.schedule(501)).eps.equal(wanted)


# -- what a user can mend ------------------------------------------------------------------------


@contextmanager
def refusal(words: str):
    """One sentence that holds these words."""
    with pytest.raises(UserError, match=words) as caught:
        yield
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_description(copy, file):
    (copy / file).unlink()
    with refusal(f"{file} is missing: give a folder in diffusers' layout"):
        load(str(copy))


@pytest.mark.parametrize("text", ["{", "[]", "\x80"])
def test_a_damaged_description(copy, text):
    (copy / "vae" / "config.json").write_bytes(text.encode("latin1"))
    with refusal("vae/config.json is damaged .* fetch it again"):
        load(str(copy))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights(copy, part):
    next((copy / part).glob("*.safetensors")).unlink()
    with refusal(f"{part} cannot be read: a folder must hold"):
        load(str(copy))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_truncated_weights(copy, part):
    weights = next((copy / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with refusal("is damaged or incomplete .* fetch it again"):
        load(str(copy))


class Shout:
    """What an unrestricted unpickler would call."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["a single file", "a folder"])
def test_a_pickle_is_not_executed(copy, tmp_path, where):
    heard, path = tmp_path / "heard", tmp_path / "sd.ckpt"
    if where == "a folder":
        next((copy / "unet").glob("*.safetensors")).unlink()
        path = copy / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Shout(heard)}, path)
    with refusal("refused: it asks for .*; nothing was executed"):
        load(str(copy if where == "a folder" else path), network=network())
    assert not heard.exists()
    pickle.loads(pickle.dumps(Shout(heard)))
    assert heard.exists(), "the file would have been dangerous"


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "cross_attention_dim", 768),
        ("unet", "block_out_channels", [320, 640]),
        ("vae", "scaling_factor", 0.13025),
        ("text_encoder", "hidden_act", "quick_gelu"),
        ("scheduler", "prediction_type", "v_prediction"),
    ],
)
def test_a_folder_of_another_network(folder, part, key, value):
    promised = network(**{part: {key: value}})
    with refusal(rf"its {part}.{key} is .*, not .*{str(value)[-3:]}.*; give model=sd for another"):
        load(str(folder), network=promised)


def test_a_single_file_does_not_describe_itself(tmp_path):
    path = tmp_path / "sd.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with refusal("sd.safetensors does not describe itself: give model=sd21_base, "):
        load(str(path))
    with refusal("sd.safetensors holds no Stable Diffusion: its names should begin with"):
        load(str(path), network=network())


@pytest.mark.parametrize("left_out", ["model.diff", "first_stage_model.", "cond_stage_model."])
def test_half_a_single_file(tmp_path, left_out):
    path = tmp_path / "sd.safetensors"
    state = single_files.single_file(tiny().parts, single_files.open_clip)
    save_file({k: v for k, v in state.items() if not k.startswith(left_out)}, path)
    with refusal("holds no Stable Diffusion|does not fit this network; missing: "):
        load(str(path), network=network(), size=64)


def test_a_single_file_of_another_network(tmp_path):
    path = tmp_path / "sd.safetensors"
    save_file(single_files.single_file(tiny().parts, single_files.open_clip), path)
    for other in (SD1(), DEEP(), network(unet={"block_out_channels": [32, 96]})):
        with refusal("does not fit this network; "):
            load(str(path), network=other, size=64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "sample"}, "prediction_type=sample is not supported: only epsilon"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule=squaredcos_cap_v2 is not supp"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is not supported"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is not supported"),
    ],
)
def test_a_scheduler_that_we_do_not_have(copy, changes, words):
    edit(copy / "scheduler" / "scheduler_config.json", **changes)
    with refusal(words):
        load(str(copy))


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


def test_a_tokenizer_that_is_missing_or_damaged(copy):
    files = [*(copy / "tokenizer").iterdir()]
    (copy / "tokenizer" / "tokenizer.json").write_text('{"version": ')
    with refusal("tokenizer cannot be read .* fetch it again"):
        load(str(copy))
    for file in files:
        file.unlink()
    with refusal("tokenizer holds no vocabulary .* fetch it again"):
        load(str(copy))
    (copy / "tokenizer").rmdir()
    with refusal("tokenizer holds no vocabulary .* fetch it again"):
        load(str(copy))


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
    with refusal(rf"{package} is needed here .*pip install 'bdia-exp\[sd\]'"):
        load("random:0", network=network())


# -- to latents and back -------------------------------------------------------------------------


def rows(net: torch.nn.Module, run: Callable[[], object]) -> list[int]:
    seen: list[int] = []
    hook = net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    run()
    hook.remove()
    return seen


def test_the_autoencoder_has_an_image_at_a_time():
    vae, images = tiny().parts["vae"], []
    assert rows(vae.decoder, lambda: images.append(tiny().decode(latents(3)))) == [1, 1, 1]
    assert rows(vae.encoder, lambda: tiny().encode(images[0])) == [1, 1, 1]


def test_memory_of_decoding_does_not_grow_with_the_batch():
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


def test_encoding_is_the_mean_times_the_scaling():
    images = torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64).byte()
    with torch.no_grad():
        means = [
            tiny().parts["vae"].encode(image / 127.5 - 1).latent_dist.mean
            for image in images.split(1)
        ]
    found = tiny().encode(images)
    assert found.dtype == torch.float64
    assert found.equal((torch.cat(means) * 0.18215).double())
    assert tiny().encode(tiny().decode(found)).shape == found.shape
    assert tiny().decode(found).shape == images.shape


def test_states_are_float64():
    estimate = tiny().denoiser(Text([PROMPT], 3.0))(latents(), tiny().schedule(501))
    assert (estimate.z.dtype, estimate.eps.dtype) == (torch.float64, torch.float64)


def test_off_the_cpu_a_batch_goes_through_the_unet_as_one():
    """As the meta device shows, which is treated as a GPU is."""
    model = load(**configured(*CONTROL), device="meta")
    shown = torch.zeros(1, 3, 64, 64, device="meta")
    z = torch.empty(3, *model.shape, dtype=torch.float64, device="meta")
    for guidance, asked in ((3.0, 6), (1.0, 3)):
        denoiser = model.denoiser(Text([PROMPT] * 3, guidance, shown))
        for part in ("unet", "controlnet"):
            assert rows(model.parts[part], lambda d=denoiser: d(z, model.schedule(501))) == [asked]


# -- predictions and levels ----------------------------------------------------------------------


def test_v_prediction():
    """x̂ = α z − σ v."""
    model = tiny()
    of_v = StableDiffusion(model.parts, model.tokenizer, model.schedule, "v_prediction", 64, {})
    level, z = model.schedule(501), latents()
    with torch.no_grad():
        time = torch.tensor(501)
        v = model.parts["unet"](z.float(), time, model.embed([PROMPT])).sample.double()
    found = of_v.denoiser(Text([PROMPT]))(z, level).x
    torch.testing.assert_close(found, level.alpha * z - level.sigma * v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edms_levels(prediction):
    """A state of EDM's is the state of the VP level with the same σ/α, scaled: so is its x̂."""
    model = tiny()
    of_it = StableDiffusion(model.parts, model.tokenizer, model.schedule, prediction, 64, {})
    denoiser, level = of_it.denoiser(Text([PROMPT], 3.0)), model.schedule(501)
    found = denoiser(latents() / level.alpha, edm(level.rho))
    torch.testing.assert_close(found.x, denoiser(latents(), level).x, rtol=1e-5, atol=1e-5)


def test_levels_beyond_the_schedule_are_refused():
    with refusal("this network was trained for noise up to sigma=14.6"):
        tiny().denoiser(Text([PROMPT]))(latents(), edm(80.0))


# -- runs ----------------------------------------------------------------------------------------

QUICK = ("model=tiny-sd", "sampler=bdia_ddim", "nfe=3", "device=cpu", "prompts_seed=null")


def sample(out: Path, *words: str) -> dict[str, Any]:
    (quoted,) = cli.expand("sample", (*QUICK, f"out={out}", *words), multirun=False)
    return cli.call("sample", quoted)


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
    assert (first["nfe"], len(calls)) == (3, 3 * 5)
    assert not pngs(tmp_path)
    then = sample(tmp_path, *words, "save=folder")
    assert (then["nfe"], then["sampled"], len(calls)) == (3, 0, 3 * 5)
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
