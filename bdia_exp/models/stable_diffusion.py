"""Stable Diffusion as a `Model`: text to latents, and latents to images.

The networks are diffusers' U-Net, autoencoder and ControlNet and transformers' text encoder; grids,
samplers and inversion are ours. A state is a latent [B, 4, h, w], with h = w = size / 8.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdia_exp import checkpoints
from bdia_exp.checkpoints import PIPELINE
from bdia_exp.core import Denoiser, Estimate, Level
from bdia_exp.errors import UserError, nearest
from bdia_exp.extras import require
from bdia_exp.guidance import guided
from bdia_exp.models import Condition, Text, at_vp_level, parameter_count, sd_files, starting_noise
from bdia_exp.models.clip_tokenizer import tokenizer as clip_tokenizer
from bdia_exp.models.clip_tokenizer import without_mark
from bdia_exp.models.sd_files import Description
from bdia_exp.schedules import DiscreteVP
from bdia_exp.seeds import Generators

TITLES = {
    "unet": "U-Net",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "controlnet": "ControlNet",
}


class StableDiffusion:
    """`parts` holds unet, vae, text_encoder and perhaps controlnet, all on one device.

    `tokenizer` is None only on the meta device. On a CPU every image is computed by itself, so that
    it does not depend on its batch; on a GPU the batch goes through the U-Net as one.
    """

    num_classes = 0
    takes_text = True

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        tokenizer: Any,
        schedule: DiscreteVP,
        prediction: str,
        size: int,
        provenance: Mapping[str, object],
        control_scale: float = 1.0,
    ):
        self.parts: Mapping[str, Any] = parts
        self.networks = {TITLES[name]: net for name, net in parts.items()}
        self.tokenizer, self.schedule, self.prediction = tokenizer, schedule, prediction
        self.size, self.provenance, self.control_scale = size, provenance, control_scale
        config: Any = parts["vae"].config
        side = size // _reduction(config)
        self.shape = (config.latent_channels, side, side)
        self.image_shape = (config.out_channels, size, size)
        self.scaling: float = config.scaling_factor
        self.device = next(parts["unet"].parameters()).device
        self.body = next(parts["unet"].parameters()).dtype
        self._empty: Tensor | None = None

    def start(self, rng: Generators, level: Level) -> Tensor:
        return starting_noise(rng, self.shape, level).to(self.device)

    def denoiser(self, condition: Condition) -> Denoiser:
        """One evaluation is one call of the U-Net, with two rows an image where there is guidance.

        Raises UserError for a control without a ControlNet, or the other way round.
        """
        text = condition if isinstance(condition, Text) else Text([""])
        if (text.control is None) != ("controlnet" not in self.parts):
            raise UserError(
                "a ControlNet and its image go together: give control= with condition=controlnet"
            )
        asked = self.embed(text.prompts)
        rows = [asked] if text.guidance == 1 else [self.empty.expand_as(asked), asked]
        conditions = [torch.stack(rows, 1).to(self.body)]
        if text.control is not None:
            shown = (text.control.to(self.device).float() / 255).to(self.body)
            conditions.append(shown[:, None].expand(-1, len(rows), *shown.shape[1:]))

        def denoise(z: Tensor, level: Level) -> Estimate:
            known = at_vp_level(level, self.schedule)
            x = z * (known.alpha / level.alpha)
            each = [c.expand(len(z), *c.shape[1:]) for c in conditions]
            together = 1 if self.device.type == "cpu" else len(z)

            def network(x: Tensor, embedding: Tensor, shown: Tensor | None = None) -> Tensor:
                return self._unet(x, known.time, embedding, shown).to(z.dtype)

            found = torch.cat(
                [
                    guided(network, own, text.guidance, *rest)
                    for own, *rest in zip(*(t.split(together) for t in (x, *each)), strict=True)
                ]
            )
            if self.prediction == "v_prediction":
                found = Estimate.from_v(known, x, found).eps
            return Estimate(level, z, found)

        return denoise

    def _unet(self, x: Tensor, time: float, embedding: Tensor, shown: Tensor | None) -> Tensor:
        x = x.to(self.body)
        t = torch.full((), time, device=self.device)  # unlike torch.tensor it waits for nothing
        extra: dict[str, Any] = {}
        if shown is not None:
            down, middle = self.parts["controlnet"](
                x, t, embedding, shown, self.control_scale, return_dict=False
            )
            extra = {
                "down_block_additional_residuals": down,
                "mid_block_additional_residual": middle,
            }
        return self.parts["unet"](x, t, embedding, **extra, return_dict=False)[0]

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The text encoder's states, float32 [B, 77, D]; what is longer than 77 tokens is cut."""
        net = self.parts["text_encoder"]
        if self.tokenizer is None:
            shape = len(prompts), net.config.max_position_embeddings, net.config.hidden_size
            return torch.empty(shape, device=self.device)
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=net.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)
        together = 1 if self.device.type == "cpu" else len(tokens)
        with torch.inference_mode():
            return torch.cat([net(part).last_hidden_state for part in tokens.split(together)])

    @property
    def empty(self) -> Tensor:
        """The empty prompt's states, [1, 77, D]."""
        if self._empty is None:
            self._empty = self.embed([""])
        return self._empty

    def decode(self, z: Tensor) -> Tensor:
        """Stable Diffusion's rounding: 255 · clamp((x + 1)/2), truncated. No watermark.

        One image at a time: memory does not grow with the batch.
        """
        images = [((self.pixels(one) + 1) / 2).clamp(0, 1) * 255 for one in z.split(1)]
        return torch.cat([image.to(torch.uint8) for image in images])

    def pixels(self, z: Tensor) -> Tensor:
        """The autoencoder's images of latents, float32 [B, 3, size, size], −1 to 1 or beyond."""
        with torch.inference_mode():
            return self.parts["vae"].decode(z.float() / self.scaling, return_dict=False)[0]

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the autoencoder's distribution, float64; one image at a time."""
        with torch.inference_mode():
            latents = [
                self.parts["vae"].encode(x).latent_dist.mode() * self.scaling
                for x in (images.to(self.device).float() / 127.5 - 1).split(1)
            ]
        return torch.cat(latents).double()


def load(
    checkpoint: str,
    *,
    network: Description | None = None,
    size: int | None = None,
    control: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> StableDiffusion:
    """Stable Diffusion from a folder in diffusers' layout or a single file, ready to sample.

    `checkpoint` is the path of either, `hub:ORG/NAME@REVISION`, `fetch:FILE`, or `random:SEED` for
    new weights. `network` describes it as `sd_files` does: what a folder must say of itself, and
    what the other two are. `size` is that of the images in pixels, by default the one that the
    U-Net was trained for. `dtype` is that of the U-Net: "auto" is float32. With device="meta" there
    are no weights, and where `network` is given the checkpoint need not be there.

    `control` adds a ControlNet: {"checkpoint", "network", "scale"}, its checkpoint as above but no
    single file.

    Raises UserError if something is missing, damaged or of another network.
    """
    on_meta = device == "meta"
    random = _random_seed(checkpoint)
    path = None if random is not None or (on_meta and network) else checkpoints.locate(checkpoint)
    folder = path if path and path.is_dir() else None
    promised: Description = sd_files.plain(network or {})
    found = promised
    if folder:
        found = promised | sd_files.described_by(folder)
        sd_files.require_promised(promised, found, checkpoint)
    if not network and not folder:
        raise UserError(
            f"{checkpoint} does not describe itself: give model=sd21_base, sd21, sd15 or sd14, or "
            "a folder in diffusers' layout"
        )

    wanted = (*PIPELINE, "scheduler", *([] if folder else ["pad_token"]))
    if missing := [part for part in wanted if part not in found]:
        raise UserError(f"model.network lacks {', '.join(missing)}: take it from model=sd21_base")
    parts: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    single = sd_files.read_single(path, found) if path and not folder and not on_meta else {}
    for part in PIPELINE:
        own = folder / part if folder else None
        parts[part] = _network(part, found[part], own, single.get(part), random, on_meta)
    sd_files.require_plain(*(parts[part].config for part in PIPELINE))
    provenance: dict[str, object] = {"checkpoint": path.name if path else checkpoint}
    if not on_meta:
        hashes["sha256"] = checkpoints.sha256(path) if path else _digest(parts)
    if control:
        _require_control(control)
        parts["controlnet"], hashes["control_sha256"] = _controlnet(**control, on_meta=on_meta)
        sd_files.require_match(parts["controlnet"].config, parts["unet"].config)
    provenance |= {"parameters": sum(map(parameter_count, parts.values())), **hashes}

    body = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    for part, net in parts.items():
        if part in ("unet", "controlnet") and body != torch.float32:
            net.to(body)
        net.to(device).eval().requires_grad_(False)
    pixels = _size(size, parts["unet"].config, _reduction(parts["vae"].config))
    tokenizer = None if on_meta else _tokenizer(folder, found)
    return StableDiffusion(
        parts,
        tokenizer,
        sd_files.schedule(found["scheduler"]),
        sd_files.prediction(found["scheduler"]),
        pixels,
        provenance,
        (control or {}).get("scale", 1.0),
    )


def _size(size: int | None, unet: Any, reduction: int) -> int:
    """The images' in pixels: the one asked for, or that of the training."""
    unit = reduction << len(unet.block_out_channels) - 1
    if size is None:
        if not isinstance(unet.sample_size, int):
            raise UserError("this U-Net does not say what its images' size is: give model.size=")
        size = unet.sample_size * reduction
    if size < unit or size % unit:
        raise UserError(f"model.size={size} must be a multiple of {unit}")
    return size


def _network(part, config, folder, weights, random, on_meta: bool) -> nn.Module:
    """A part with its weights: those of a folder, those given, or new ones from a seed."""
    if random is not None and not on_meta:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random)
            return sd_files.build(part, config)
    with torch.device("meta"):
        net = sd_files.build(part, config)
    if not on_meta:
        sd_files.fill(part, net, weights or checkpoints.read(folder))
    return net


def _require_control(control: Mapping[str, Any]) -> None:
    known = ("checkpoint", "network", "scale")
    if not isinstance(control, Mapping) or not isinstance(control.get("checkpoint"), str):
        raise UserError("model.control= is wrong: use condition=controlnet and model.control.…=")
    for key in control:
        if key not in known:
            raise UserError(f"there is no key 'model.control.{key}'{nearest(str(key), known)}")
    if not isinstance(control.get("scale", 1.0), (int, float)):
        raise UserError(f"model.control.scale={control['scale']} must be a number")


def _controlnet(
    checkpoint: str, network: Mapping[str, Any] | None = None, scale: float = 1.0, *, on_meta: bool
) -> tuple[nn.Module, str]:
    """A ControlNet and the sha256 of its weights."""
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
                if not parameter.any():  # a new ControlNet ends in zeros: it would change nothing
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
    """Of weights as numbers, where there is no file."""
    state = hashlib.sha256()
    for net in parts.values():
        for name, tensor in net.state_dict().items():
            state.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def _reduction(vae: Any) -> int:
    """Pixels of an image for one of the latent, in each direction."""
    return 1 << len(vae.block_out_channels) - 1


def _tokenizer(folder: Path | None, found: Description) -> Any:
    if folder is None:
        return clip_tokenizer(found["pad_token"])
    own = folder / "tokenizer"
    if not any((own / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        # transformers would make one that knows no word
        raise UserError(f"{own} holds no vocabulary (tokenizer.json or vocab.json): fetch it again")
    transformers = require("transformers")
    try:
        given = transformers.CLIPTokenizer.from_pretrained(own, local_files_only=True)
        return without_mark(given)
    except Exception as error:  # the Rust library within raises plain ones
        told = " ".join(str(error).split())
        raise UserError(f"{own} cannot be read ({told}): fetch it again") from None
