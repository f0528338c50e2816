"""Stable Diffusion's networks with weights, and its tokenizer, from an `Origin`."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bdia_exp.errors import UserError, brief, nearest
from bdia_exp.extras import require
from bdia_exp.models import sd_files
from bdia_exp.models.clip_tokenizer import tokenizer as clip_tokenizer
from bdia_exp.models.clip_tokenizer import without_mark
from bdia_exp.models.sd_files import Description
from bdia_exp.sources import checkpoints
from bdia_exp.sources.checkpoints import PIPELINE


@dataclass(frozen=True)
class Origin:
    """Where a Stable Diffusion model comes from, and its description."""

    checkpoint: str
    """As the user names it."""
    path: Path | None
    """A folder in diffusers' layout or a single file; None for new weights, or for no weights."""
    seed: int | None
    """The seed of new weights."""
    description: Description
    on_meta: bool
    """Whether the networks are built without weights."""

    @classmethod
    def of(cls, checkpoint: str, network: Description | None, *, on_meta: bool) -> "Origin":
        """The origin that `checkpoint` names, described by its folder or by `network`.

        Raises UserError if there is no such checkpoint, if it does not agree with `network`, or if
        a part of the description is missing.
        """
        seed = _random_seed(checkpoint)
        unread = seed is not None or (on_meta and network)
        path = None if unread else checkpoints.locate(checkpoint)
        found = promised = sd_files.plain(network or {})
        folder = path if path and path.is_dir() else None
        if folder:
            found = promised | sd_files.described_by(folder)
            sd_files.require_promised(promised, found, checkpoint)
        if not network and not folder:
            raise UserError(
                f"{checkpoint} has no description of its networks: give model=sd21_base, sd21, "
                "sd15 or sd14, or a folder in diffusers' layout"
            )
        wanted = (*PIPELINE, "scheduler", *([] if folder else ["pad_token"]))
        if missing := [part for part in wanted if part not in found]:
            raise UserError(
                f"model.network lacks {', '.join(missing)}: take it from model=sd21_base"
            )
        return cls(checkpoint, path, seed, found, on_meta)

    @property
    def name(self) -> str:
        return self.path.name if self.path else self.checkpoint

    @property
    def folder(self) -> Path | None:
        return self.path if self.path and self.path.is_dir() else None

    def networks(self) -> dict[str, Any]:
        """The networks of a pipeline, each an `nn.Module` on the CPU or the meta device.

        Raises UserError if their weights are missing, damaged or of other networks.
        """
        single = {}
        if self.path and not self.folder and not self.on_meta:
            single = sd_files.read_single(self.path, self.description)
        parts = {}
        for part in PIPELINE:
            own = self.folder / part if self.folder else None
            parts[part] = _network(
                part, self.description[part], own, single.get(part), self.seed, self.on_meta
            )
        sd_files.require_plain(*(parts[part].config for part in PIPELINE))
        return parts

    def sha256(self, parts: Mapping[str, nn.Module]) -> str:
        """Of the files, or of the weights' values if there is no file."""
        return checkpoints.sha256(self.path) if self.path else _digest(parts)

    def tokenizer(self) -> Any:
        """The folder's own, else CLIP's; None on the meta device."""
        return None if self.on_meta else _tokenizer(self.folder, self.description)


def _network(part, config, folder, weights, random, on_meta: bool) -> nn.Module:
    """A part with its weights: from a folder, from `weights`, or new ones from a seed."""
    if random is not None and not on_meta:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random)
            return sd_files.build(part, config)
    with torch.device("meta"):
        net = sd_files.build(part, config)
    if not on_meta:
        sd_files.fill(part, net, weights or checkpoints.read(folder))
    return net


def require_control(control: Mapping[str, Any]) -> None:
    """Raises UserError unless these are the arguments of `controlnet` without `on_meta`."""
    known = ("checkpoint", "network", "scale")
    if not isinstance(control, Mapping) or not isinstance(control.get("checkpoint"), str):
        raise UserError("model.control= is wrong: use condition=controlnet and model.control.…=")
    for key in control:
        if key not in known:
            raise UserError(f"there is no key 'model.control.{key}'{nearest(str(key), known)}")
    if not isinstance(control.get("scale", 1.0), (int, float)):
        raise UserError(f"model.control.scale={control['scale']} must be a number")


def controlnet(
    checkpoint: str, network: Mapping[str, Any] | None = None, scale: float = 1.0, *, on_meta: bool
) -> tuple[nn.Module, str]:
    """A ControlNet and the sha256 of its weights, "" on the meta device.

    Raises UserError as `Origin` does.
    """
    random = _random_seed(checkpoint)
    if random is None and not (on_meta and network):
        folder = checkpoints.locate(checkpoint)
        found = sd_files.read_json(folder / "config.json")
        promised = {"controlnet": sd_files.plain(network or {})}
        sd_files.require_promised(promised, {"controlnet": found}, checkpoint)
        net = _network("controlnet", found, folder, None, None, on_meta)
        return net, "" if on_meta else checkpoints.sha256(folder)
    if not network:
        raise UserError(f"model.control.network= is needed with {checkpoint}")
    net = _network("controlnet", sd_files.plain(network), None, None, random, on_meta)
    if not on_meta:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(random)
            for parameter in net.parameters():
                if not parameter.any():  # zeros, as in a new ControlNet, have no effect
                    parameter.normal_(std=0.1)
    return net, "" if on_meta else _digest({"controlnet": net})


def _random_seed(checkpoint: str) -> int | None:
    kind, _, seed = checkpoint.partition(":")
    if kind != "random":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", seed):
        raise UserError(f"checkpoint={checkpoint}: give a seed, such as random:0")
    return int(seed)


def _digest(parts: Mapping[str, nn.Module]) -> str:
    """The sha256 of the weights' values, for networks without a file."""
    state = hashlib.sha256()
    for net in parts.values():
        for name, tensor in net.state_dict().items():
            state.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def _tokenizer(folder: Path | None, found: Description) -> Any:
    if folder is None:
        return clip_tokenizer(found["pad_token"])
    own = folder / "tokenizer"
    if not any((own / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        # transformers would make a tokenizer without words
        raise UserError(f"{own} holds no vocabulary (tokenizer.json or vocab.json): fetch it again")
    transformers = require("transformers")
    try:
        given = transformers.CLIPTokenizer.from_pretrained(own, local_files_only=True)
        count, words = 1 + max(given.get_vocab().values()), found["text_encoder"].get("vocab_size")
        made = without_mark(given)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust library is no Exception
        told = " ".join(str(error).split())
        raise UserError(f"{own} cannot be read ({brief(told)}): fetch it again") from None
    if words is not None and count > words:
        raise UserError(f"{own} has {count} words, and the text encoder {words}: fetch it again")
    return made
