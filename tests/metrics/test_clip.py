"""CLIP score: on a tiny random CLIP model, against a direct computation and through the verbs."""

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp.cli.configs import call, settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.metrics.clip import Clip, prompts_of
from bdia_exp.metrics.features import bundled
from bdia_exp.metrics.score import Score
from bdia_exp.sources import checkpoints
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import Folder
from bdia_exp.verbs import verb

IMAGES = torch.randint(
    0, 256, (70, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PROMPTS = [" ".join("abcdefghij"[int(d)] for d in f"{k:05d}"[: 1 + k % 5]) for k in range(70)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CLIP model of random weights, with a vocabulary of single letters."""
    from transformers import (  # takes seconds
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    root = tmp_path_factory.mktemp("clip") / "tiny-clip"
    letters = "abcdefghij"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": 20, "eos_token_id": 21, "pad_token_id": 21}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "initializer_range": 0.5}
    config = CLIPConfig(
        text_config={"vocab_size": 22, "max_position_embeddings": 8, **ends, **size},
        vision_config={"image_size": 32, "patch_size": 8, **size},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(root)
    (root / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(root / "vocab.json"), str(root / "merges.txt"))
    shape = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**shape), tokenizer).save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def clip(folder) -> Clip:
    return Clip(str(folder))


def directly(folder: Path, images, prompts) -> torch.Tensor:
    """100 · max(cos, 0) by the model's own similarity, one pair after the other."""
    from transformers import CLIPModel, CLIPProcessor

    net, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        given = processor(text=[prompt], images=[picture], return_tensors="pt")
        with torch.no_grad():
            out = net.eval()(**given)
        scores.append((out.image_embeds * out.text_embeds).sum().clamp(min=0) * 100)
    return torch.stack(scores).double()


def test_equals_a_direct_computation(clip, folder):
    found = clip(IMAGES[:12], PROMPTS[:12])
    assert found.dtype == torch.float64
    assert found.std() > 1
    assert (found > 0).any()
    assert (found - directly(folder, IMAGES[:12], PROMPTS[:12])).abs().max() < 1e-3


def test_a_pair_does_not_depend_on_its_batch_to_the_bit(clip):
    whole = clip(IMAGES, PROMPTS)  # more than one chunk
    parts = [clip(IMAGES[k : k + 7], PROMPTS[k : k + 7]) for k in range(0, 70, 7)]
    assert torch.equal(torch.cat(parts), whole)
    assert clip(IMAGES[:0], []).shape == (0,)


def test_swapped_prompts_score_otherwise(clip):
    first, second = clip(IMAGES[:2], PROMPTS[3:5]), clip(IMAGES[:2], PROMPTS[3:5][::-1])
    assert (first - second).abs().max() > 0.1


def test_images_of_any_size_and_grey_ones_and_long_texts(clip):
    grey = IMAGES[:1, :1, :40, :]
    found = clip([grey[0], IMAGES[1]], ["a b", "c " * 50])
    assert torch.equal(found[:1], clip(grey.expand(-1, 3, -1, -1), ["a b"]))
    assert torch.equal(found[1:], clip(IMAGES[1:2], ["c " * 6]))  # start, six letters, end
    with pytest.raises(UserError, match="2 images and 1 prompts"):
        clip(IMAGES[:2], ["a"])


def test_a_cut_text_is_told_once(folder, capsys):
    clip = Clip(str(folder))
    for _ in range(2):
        clip(IMAGES[:3], ["a b", "c " * 6 + "d e", "c " * 6 + "f"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "CLIP reads 8 tokens of a prompt, and 2 of 3 have more and are cut" in line
    assert "without its end 'd e'" in line


def test_no_network_is_asked(folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Clip(str(folder)).name == "tiny-clip"


def test_a_name_on_the_hub_is_located_and_shown(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "locate", lambda _: folder)
    assert Clip("hub:openai/clip-vit-base-patch16@abc").name == "openai/clip-vit-base-patch16"


def test_a_folder_cannot_choose_a_program_for_attention(folder, clip, tmp_path):
    """The library would fetch it from the hub and run it."""
    own = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((own / "config.json").read_text()) | {"attn_implementation": "who/what"}
    (own / "config.json").write_text(json.dumps(config))
    assert torch.equal(Clip(str(own))(IMAGES[:2], PROMPTS[:2]), clip(IMAGES[:2], PROMPTS[:2]))


def test_folders_that_are_none_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"clip=/no/where: no folder is there.*hub:ORG/NAME"):
        Clip("/no/where")
    with pytest.raises(UserError, match=r"cannot be read as a CLIP model.*model\.safetensors"):
        Clip(str(tmp_path))
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"must hold config\.json, model\.safetensors"):
        Clip(str(pickled))
    bare = shutil.copytree(folder, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    for name in ("vocab.json", "merges.txt", "processor_config.json"):
        (bare / name).unlink()
    with pytest.raises(UserError, match="cannot be read as a CLIP model"):
        Clip(str(bare))
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"not a whole CLIP model.*lack text_model"):
        Clip(str(other))


class Grey:
    """The bundled features of coloured images."""

    def __init__(self, device="cpu"):
        self.inner = bundled(device)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, images):
        return self.inner(images.float().mean(1, keepdim=True).to(torch.uint8))


def made(root: Path, rows: list[tuple]) -> Path:
    """A run of 70 images, seeds 5 to 74, with these rows of prompts."""
    Folder(root).write(range(5, 75), IMAGES)
    lines = ["seed,image,prompt", *(",".join(map(str, row)) for row in rows)]
    (root / "prompts.csv").write_text("\n".join(lines) + "\n")
    return root


def evaluate(images: Path, *more: str) -> dict:
    words = [f"images={images}", "metrics=[fid,clip]", "resize=32", "batch=32", "device=cpu"]
    words += [f"out={images}/score.json", *more]
    asked = settings("evaluate", words)
    return verb("evaluate").function(replace(asked, features=Choice("grey", {}, Grey)))


@pytest.mark.parametrize("packed", [False, True])
def test_evaluate_reads_the_prompts_of_a_run(folder, clip, tmp_path, capsys, packed):
    """By seed, whatever the order of the rows; the images as they are, before any resize."""
    rows = [(k + 5, 100 + k, f'"{PROMPTS[k]}"') for k in range(70)]
    root = made(tmp_path / "run", rows[::-1])
    if packed:
        Folder(root).pack(range(5, 75))
    score = evaluate(root, f"clip={folder}")["score"]
    assert score["clip_score"] == pytest.approx(float(clip(IMAGES, PROMPTS).mean()), rel=1e-6)
    assert score["clip"] == "tiny-clip"
    assert score["clip_sha256"] == checkpoints.sha256(folder / "model.safetensors")
    assert score["resize"] == 32
    assert f"CLIP score {score['clip_score']:.2f} (tiny-clip)" in capsys.readouterr().out


def test_two_processes_one_without_images_give_the_score_of_one(folder, clip, tmp_path):
    grey = IMAGES[:, :1, :32, :32]
    Folder(tmp_path).write(range(70), grey)
    rows = [f"{k},0,{prompt}" for k, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.csv").write_text("\n".join(["seed,image,prompt", *rows]))
    words = [f"images={tmp_path}", "metrics=[fid,clip]", f"clip={folder}", "batch=70"]
    words += ["device=cpu", f"out={tmp_path / 'score.json'}", "-p", "2"]
    command = [sys.executable, "-m", "bdia_exp", "evaluate", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("CLIP score") == 1
    score = json.loads((tmp_path / "score.json").read_text())["score"]
    assert score["clip_score"] == pytest.approx(float(clip(grey, PROMPTS).mean()), rel=1e-6)


def test_what_is_lacking_is_said_before_any_image(folder, tmp_path):
    rows = [(k + 5, 100 + k, "a") for k in range(70)]
    root = made(tmp_path / "run", rows)
    with pytest.raises(UserError, match="metrics: clip needs clip=, the folder"):
        evaluate(root)
    with pytest.raises(UserError, match=r"clip=.* is for metrics=\[fid,clip\]: add it there"):
        evaluate(root, f"clip={folder}", "metrics=[fid]")
    made(root, rows[1:])
    with pytest.raises(UserError, match="has no prompt for the image 5"):
        evaluate(root, f"clip={folder}")
    for text in ("seed,prompt\nx,y\n", "image,prompt\n1,a\n", "seed,prompt\n5\n"):
        (root / "prompts.csv").write_text(text)
        with pytest.raises(UserError, match="is not a CSV file of the columns seed, image"):
            evaluate(root, f"clip={folder}")
    (root / "prompts.csv").unlink()
    with pytest.raises(UserError, match=r"give a run that has prompts\.csv"):
        evaluate(root, f"clip={folder}")


def test_prompts_belong_to_numbered_images(tmp_path):
    (tmp_path / "set").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "set/cat.png")
    (tmp_path / "set/prompts.csv").write_text("seed,image,prompt\n0,0,a cat\n")
    with pytest.raises(UserError, match="no prompt for the image"):
        prompts_of(ImageSet(tmp_path / "set"), 1)


@pytest.mark.parametrize("name", ["images.npz", "images.npy"])
def test_arrays_beside_the_prompts_of_a_run_have_no_names_for_them(name, tmp_path):
    (tmp_path / "prompts.csv").write_text("seed,image,prompt\n0,0,a cat\n")
    array = np.zeros((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / name, array) if name.endswith("z") else np.save(tmp_path / name, array)
    with pytest.raises(UserError, match=r"images\.np. has no names of images, .*: give the run"):
        prompts_of(ImageSet(tmp_path / name), 1)


def test_a_model_without_prompts_is_refused(folder, tmp_path):
    words = ["metrics=[fid,clip]", f"clip={folder}", "score=true", "images=70", "nfe=1"]
    words += ["device=cpu", f"out={tmp_path / 'x'}"]
    with pytest.raises(UserError, match="choose a text-to-image model"):
        call("sample", words)
    assert not (tmp_path / "x").exists()
    score = Score(bundled(), None, ["clip"], clip=str(folder))
    with pytest.raises(UserError, match="these have none"):
        score.update(IMAGES[:, :1, :32, :32], None, range(70))
