"""Descriptions of Stable Diffusion that are no JSON, or that ask for too much, and tokenizers."""

import json
import os

import pytest

from bdia_exp.models import sd_files
from bdia_exp.models.stable_diffusion import load
from tests.models.tiny_sd import edit, network, refusal

pytestmark = pytest.mark.usefixtures("stable_diffusion")

JSON = {
    "a list": b"[1]",
    "a number": b"3",
    "a text": b'"x"',
    "null": b"null",
    "nothing": b"",
    "deep": b"[" * 200_000,
    "deep in an object": b'{"a":' * 100_000,
    "infinity": b'{"sample_size": Infinity}',
    "no number": b'{"sample_size": NaN}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": b'{"a": "\xe9"}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "large": b'{"a": "' + b"x" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("what", JSON)
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_file_that_is_no_object(copy, what, file):
    (copy / file).write_bytes(JSON[what])
    with refusal(f"{file} is damaged .*: fetch it again"):
        load(str(copy))


def test_a_pipe_is_no_file(copy):
    (copy / "vae/config.json").unlink()
    os.mkfifo(copy / "vae/config.json")
    with refusal("vae/config.json is missing"):
        load(str(copy))


WRONG = [
    ("unet", "layers_per_block", 10**6),
    ("unet", "layers_per_block", [2, 10**6]),
    ("unet", "transformer_layers_per_block", 10**6),
    ("unet", "block_out_channels", [10**9, 10**9]),
    ("unet", "block_out_channels", [32] * 1000),
    ("unet", "block_out_channels", 32),
    ("unet", "block_out_channels", []),
    ("unet", "sample_size", 1e308),
    ("unet", "sample_size", [8, 8]),
    ("unet", "in_channels", -4),
    ("unet", "in_channels", True),
    ("unet", "cross_attention_dim", "32"),
    ("unet", "attention_head_dim", {"a": 1}),
    ("vae", "layers_per_block", 10**6),
    ("vae", "block_out_channels", [[32]]),
    ("vae", "latent_channels", 0),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", "\x1b[31m"),
    ("vae", "scaling_factor", True),
    ("text_encoder", "num_hidden_layers", 10**6),
    ("text_encoder", "hidden_size", 10**9),
    ("text_encoder", "hidden_act", ["gelu"]),
    ("text_encoder", "max_position_embeddings", 1),
    ("scheduler", "num_train_timesteps", 10**12),
    ("scheduler", "num_train_timesteps", [1]),
    ("scheduler", "beta_start", -1),
    ("scheduler", "beta_end", 1e308),
    ("scheduler", "beta_schedule", ["linear"]),
    ("scheduler", "prediction_type", {}),
]


@pytest.mark.parametrize(("part", "key", "value"), WRONG)
def test_a_value_out_of_its_range(part, key, value):
    """The same check for a folder and for model.network=."""
    with refusal(f"^{part} describes no network that can be built .{key}=.* must be "):
        load("random:0", network=network(**{part: {key: value}}), size=64, device="meta")


@pytest.mark.parametrize(("part", "key", "value"), WRONG[::8])
def test_it_is_found_in_a_folder_too(copy, part, key, value):
    name = "scheduler_config" if part == "scheduler" else "config"
    edit(copy / part / f"{name}.json", **{key: value})
    with refusal(f"^{part} describes no network that can be built .{key}="):
        load(str(copy))


def test_a_file_cannot_choose_a_program_for_attention():
    """The library would fetch it from the hub and run it."""
    config = network()["text_encoder"] | {"attn_implementation": "somebody/kernel"}
    net = sd_files.build("text_encoder", config)
    assert net.config._attn_implementation != "somebody/kernel"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("what", ["a list", "a number", "null", "deep", "Latin-1"])
def test_a_tokenizer_that_is_no_object(copy, file, what):
    (copy / "tokenizer" / file).write_bytes(JSON[what])
    with refusal("tokenizer.* fetch it again"):
        load(str(copy))


def test_a_tokenizer_of_more_words_than_the_text_encoder_has(copy):
    found = json.loads((copy / "tokenizer/tokenizer.json").read_text())
    vocab = found["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    vocab["one more"] = vocab[last] + 1
    (copy / "tokenizer/tokenizer.json").write_text(json.dumps(found))
    with refusal("tokenizer has 49409 words, and the text encoder 49408: fetch it again"):
        load(str(copy))


def test_a_tokenizer_with_other_words(copy):
    found = json.loads((copy / "tokenizer/tokenizer.json").read_text())
    found["model"]["vocab"] = {word: -1 for word in list(found["model"]["vocab"])[:10]}
    (copy / "tokenizer/tokenizer.json").write_text(json.dumps(found))
    with refusal("tokenizer.* fetch it again"):
        load(str(copy))
