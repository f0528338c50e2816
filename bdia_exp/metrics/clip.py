"""CLIP score: how well images match their prompts."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdia_exp.batching import in_full_rows
from bdia_exp.errors import UserError
from bdia_exp.extras import require
from bdia_exp.sources import checkpoints
from bdia_exp.sources.prompts import cut
from bdia_exp.store.image_sets import ImageSet

CHUNK = 64  # images at a time


class Clip:
    """A CLIP model for transformers, read from a folder with the model and its processor.

    `clip(images, prompts)`: images, each uint8 [3 or 1, H, W] of any size, and as many texts →
    100 · max(cos(image, text), 0) of each pair, float64 [B]. The processor resizes the images.
    Texts that are too long for the model are cut, with a warning. Float32 throughout (no TF32). On
    a CPU the score of a pair does not depend on its batch, to the bit.

    `source` is an argument of `checkpoints.locate`. Only local safetensors files are read, and
    nothing in the folder is executed. (torchmetrics' CLIPScore does not run with transformers 5,
    and would download models by name.)

    Raises UserError if the folder is missing or is not a CLIP model, or without transformers.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu"):
        folder = _folder(source)
        self.name = folder.name
        if source.startswith("hub:"):
            self.name = source.removeprefix("hub:").partition("@")[0]
        files = sorted(folder.glob("model*.safetensors"))
        self.sha256 = ",".join(map(checkpoints.sha256, files))
        self.device = torch.device(device)
        self.net, self.processor = _load(folder)
        self.net.float().eval().requires_grad_(False).to(self.device)
        self.longest = self.net.config.text_config.max_position_embeddings
        self._told: dict[str, str] = {}

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor] | Tensor, prompts: Sequence[str]) -> Tensor:
        if len(images) != len(prompts):
            raise UserError(f"there are {len(images)} images and {len(prompts)} prompts")
        new = [prompt for prompt in prompts if prompt not in self._told]
        self._told |= cut(self.processor.tokenizer, new, self.longest)
        starts = range(0, len(prompts), CHUNK)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = [
                self._pairs(images[start : start + CHUNK], prompts[start : start + CHUNK])
                for start in starts
            ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def _pairs(self, images: Sequence[Tensor] | Tensor, prompts: Sequence[str]) -> Tensor:
        coloured = [image.expand(3, -1, -1).cpu() for image in images]
        pixels = self.processor.image_processor(
            images=coloured, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"]
        text = self.processor.tokenizer(
            list(prompts),
            padding="max_length",  # the length does not depend on the other texts
            max_length=self.longest,
            truncation=True,
            return_tensors="pt",
        )
        seen = in_full_rows(self._image, pixels.to(self.device))
        tokens, mask = (text[key].to(self.device) for key in ("input_ids", "attention_mask"))
        read = in_full_rows(self._text, tokens, mask)
        return 100 * torch.cosine_similarity(seen.double(), read.double()).clamp(min=0)

    def _image(self, pixels: Tensor) -> Tensor:
        return self.net.visual_projection(self.net.vision_model(pixels).pooler_output)

    def _text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        found = self.net.text_model(input_ids=tokens, attention_mask=mask)
        return self.net.text_projection(found.pooler_output)


def _folder(source: str) -> Path:
    if not source.startswith(("hub:", "fetch:")) and not Path(source).expanduser().is_dir():
        raise UserError(
            f"clip={source}: no folder is there; give the folder of a CLIP model for "
            "transformers, or hub:ORG/NAME@REVISION"
        )
    return checkpoints.locate(source)


def _load(folder: Path) -> tuple[Any, Any]:
    """The model and the processor. Raises UserError unless the folder holds both, complete."""
    transformers, logging = require("transformers"), require("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        found: Any = transformers.CLIPModel.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            # Otherwise config.json could name a program of the hub, to be run.
            attn_implementation="sdpa",
        )
        processor = transformers.CLIPProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises many types; its messages would not help
        raise UserError(
            f"{folder} cannot be read as a CLIP model ({type(error).__name__}): it must hold "
            "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files, "
            "as openai/clip-vit-large-patch14 does"
        ) from None
    net, info = found
    if kind != "clip" or info["missing_keys"]:
        lacking = next(iter(sorted(info["missing_keys"])), "")
        raise UserError(
            f"{folder} is not a whole CLIP model: its config.json has model_type {kind!r}"
            + (f", and its weights lack {lacking}" if lacking else "")
        )
    return net, processor


def prompts_of(found: ImageSet, count: int) -> list[str]:
    """The prompts of a run's first `count` images, by seed, from the `prompts.csv` beside them.

    Its columns are seed, image and prompt; image k.png has seed k. Raises UserError if there is
    no such file, or if an image has no name, or no row for its seed.
    """
    if len(found.names) < count:
        raise UserError(
            f"{found.path} has no names of images, by which clip and prompt find their prompts: "
            "give the run itself, or a copy by `bdia-exp export` with format=png or zip"
        )
    places = [folder / "prompts.csv" for folder in (found.path, found.path.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(
            f"metrics: clip compares images with their prompts, and {found.path} has none: "
            "give a run that has prompts.csv (columns seed, image, prompt), or leave clip out"
        )
    try:
        with file.open(newline="", encoding="utf-8") as text:
            known = {int(row["seed"]): row["prompt"] for row in csv.DictReader(text)}
        if None in known.values():
            raise ValueError("a row is too short")
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{file} is not a CSV file of the columns seed, image, prompt") from None
    try:
        return [known[int(Path(name).stem)] for name in found.names[:count]]
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} has no prompt for the image {error.args[0]}") from None
