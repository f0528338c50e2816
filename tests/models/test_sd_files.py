"""Every kind of file that Stable Diffusion is in, and its errors."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdia_exp.models import Text
from bdia_exp.models.stable_diffusion import load
from bdia_exp.sources import checkpoints
from tests.models import single_files
from tests.models.tiny_sd import (
    CONTROL,
    DEEP,
    PROMPT,
    SD1,
    SD2,
    configured,
    edit,
    latents,
    network,
    refusal,
    same,
    saved,
    tiny,
)

pytestmark = pytest.mark.usefixtures("stable_diffusion")


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
    """With raw and averaged weights of the U-Net."""
    path, state = tmp_path / f"sd.{suffix}", single_files.single_file(tiny(kind).parts, text)
    state = single_files.with_raw(state)
    if suffix == "ckpt":
        torch.save({"state_dict": state, "global_step": 7, "callbacks": {"a": 1.5}}, path)
    else:
        save_file(state, path)
    found = load(str(path), network=kind(), size=64)
    assert same(found, tiny(kind))
    assert found.provenance["sha256"] == checkpoints.sha256(path)


def test_a_single_file_with_averages_of_another_network(tmp_path):
    state = single_files.single_file(tiny().parts, single_files.open_clip)
    averages = {"model_ema.diffusion_modeltime_embed0weight": torch.ones(3, 3)}
    save_file(state | averages, tmp_path / "sd.safetensors")
    with refusal("averaged weights .model_ema.* and raw ones .* do not match"):
        load(str(tmp_path / "sd.safetensors"), network=network(), size=64)


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
    with refusal("sd.safetensors has no description of its networks: give model=sd21_base, "):
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
