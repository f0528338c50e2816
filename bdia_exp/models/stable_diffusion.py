"""Stable Diffusion as a `Model`: text to latents, and latents to images.

The networks are diffusers' U-Net, autoencoder and ControlNet and transformers' text encoder; grids,
samplers and inversion are of this package. A state is a latent [B, 4, h, w], with h = w = size / 8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bdia_exp import batching
from bdia_exp.errors import UserError
from bdia_exp.models import Condition, Text, at_vp_level, parameter_count, sd_files, starting_noise
from bdia_exp.models.running import Running, number
from bdia_exp.models.sd_files import Description
from bdia_exp.models.sd_parts import Origin, controlnet, require_control
from bdia_exp.samplers.core import Denoiser, Estimate, Level
from bdia_exp.samplers.guidance import guided
from bdia_exp.samplers.schedules import DiscreteVP
from bdia_exp.seeds import Generators
from bdia_exp.sources.prompts import cut

SMALL = 16 * 16
"""Latents of at most this many pixels are small: a row costs little beside the call."""
TITLES = {
    "unet": "U-Net",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "controlnet": "ControlNet",
}


class StableDiffusion:
    """`parts` holds unet, vae, text_encoder and perhaps controlnet, all on one device.

    `tokenizer` is None only on the meta device. On a GPU the U-Net is called once for a whole
    batch. On a CPU an image does not depend on its batch: every image is computed alone, or, if
    latents are small, in batches of full rows (`batching`), which is several times faster.
    """

    num_classes = 0
    takes_text = takes_guidance = True

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        tokenizer: Any,
        schedule: DiscreteVP,
        prediction: str,
        size: int,
        provenance: Mapping[str, object],
        control_scale: float = 1.0,
        running: Running | None = None,
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
        how = running or Running()
        small = side * side <= SMALL
        self._rows = batching.ROWS if small else 1
        self._network = how.caller(self._unet, full=small)
        self._texts, self._pixels, self._latents = (
            how.caller(part, full=small, graphs=False)
            for part in (self._encoded, self._decoded, self._mode)
        )

    def start(self, rng: Generators, level: Level) -> Tensor:
        return starting_noise(rng, self.shape, level).to(self.device)

    def denoiser(self, condition: Condition) -> Denoiser:
        """One evaluation is one call of the U-Net, with two rows per image if there is guidance.

        Raises UserError for a control image without a ControlNet, and for the opposite.
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
            together = self._together(z)

            def network(x: Tensor, embedding: Tensor, shown: Tensor | None = None) -> Tensor:
                time = number(known.time, self.device)
                return self._network(x, time, embedding, shown).to(z.dtype)

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

    def _together(self, rows: Tensor) -> int:
        """How many of these images or texts go through a network at once."""
        return 1 if self.device.type == "cpu" and self._rows == 1 else len(rows)

    def _unet(self, x: Tensor, t: Tensor, embedding: Tensor, shown: Tensor | None) -> Tensor:
        x = x.to(self.body)
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
        """The text encoder's states, float32 [B, 77, D]; longer texts are cut to 77 tokens."""
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
        with torch.inference_mode():
            return torch.cat([self._texts(part) for part in tokens.split(self._together(tokens))])

    def _encoded(self, tokens: Tensor) -> Tensor:
        return self.parts["text_encoder"](tokens).last_hidden_state

    def warn_of_cut(self, prompts: Sequence[str]) -> int:
        """Warns of prompts that are longer than the text encoder reads. Returns their number."""
        if self.tokenizer is None:
            return 0
        longest = self.parts["text_encoder"].config.max_position_embeddings
        return len(cut(self.tokenizer, prompts, longest))

    @property
    def empty(self) -> Tensor:
        """The empty prompt's states, [1, 77, D]."""
        if self._empty is None:
            self._empty = self.embed([""])
        return self._empty

    def decode(self, z: Tensor) -> Tensor:
        """Stable Diffusion's rounding: 255 · clamp((x + 1)/2), truncated. No watermark.

        One image at a time, or a few small ones: memory does not grow with the batch.
        """
        images = [((self.pixels(part) + 1) / 2).clamp(0, 1) * 255 for part in z.split(self._rows)]
        return torch.cat([image.to(torch.uint8) for image in images])

    def pixels(self, z: Tensor) -> Tensor:
        """The autoencoder's images of latents, float32 [B, 3, size, size], −1 to 1 or beyond."""
        with torch.inference_mode():
            return self._pixels(z)

    def _decoded(self, z: Tensor) -> Tensor:
        return self.parts["vae"].decode(z.float() / self.scaling, return_dict=False)[0]

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the autoencoder's distribution, float64, computed as in `decode`."""
        with torch.inference_mode():
            pixels = images.to(self.device).float() / 127.5 - 1
            return torch.cat([self._latents(part) for part in pixels.split(self._rows)]).double()

    def _mode(self, pixels: Tensor) -> Tensor:
        return self.parts["vae"].encode(pixels).latent_dist.mode() * self.scaling


def load(
    checkpoint: str,
    *,
    network: Description | None = None,
    size: int | None = None,
    control: Mapping[str, Any] | None = None,
    **how: Any,
) -> StableDiffusion:
    """Stable Diffusion from a folder in diffusers' layout or a single file, ready to sample.

    `checkpoint` is the path of either, `hub:ORG/NAME@REVISION`, `fetch:FILE`, or `random:SEED` for
    new weights. `network` is a description as in `sd_files`: a folder must agree with it, and the
    other sources need it. `size` is that of the images in pixels, by default the U-Net's training
    size. `how` are the arguments of `Running`: device, dtype (of U-Net and ControlNet), …. With
    device="meta" there are no weights, and the checkpoint need not exist if `network` is given.

    `control` adds a ControlNet: {"checkpoint", "network", "scale"}. Its checkpoint is as above, but
    not a single file.

    Raises UserError if something is missing, damaged or of another network.
    """
    running = Running(**how)
    origin = Origin.of(checkpoint, network, on_meta=running.device == "meta")
    parts, hashes = origin.networks(), dict[str, str]()
    if not origin.on_meta:
        hashes["sha256"] = origin.sha256(parts)
    if control:
        require_control(control)
        parts["controlnet"], hashes["control_sha256"] = controlnet(
            **control, on_meta=origin.on_meta
        )
        sd_files.require_match(parts["controlnet"].config, parts["unet"].config)
    for part, net in parts.items():
        body = running.body if part in ("unet", "controlnet") else None
        running.ready(net, body, channels_last=running.on_cuda)
    pixels = _size(size, parts["unet"].config, _reduction(parts["vae"].config))
    parameters = sum(map(parameter_count, parts.values()))
    scheduler = origin.description["scheduler"]
    return StableDiffusion(
        parts,
        origin.tokenizer(),
        sd_files.schedule(scheduler),
        sd_files.prediction(scheduler),
        pixels,
        {"checkpoint": origin.name, "parameters": parameters, **hashes},
        (control or {}).get("scale", 1.0),
        running,
    )


def _size(size: int | None, unet: Any, reduction: int) -> int:
    """The images' size in pixels: the given one, or the training size."""
    unit = reduction << len(unet.block_out_channels) - 1
    if size is None:
        if not isinstance(unet.sample_size, int):
            raise UserError("this U-Net's config.json has no image size: give model.size=")
        size = unet.sample_size * reduction
    if size < unit or size % unit:
        raise UserError(f"model.size={size} must be a multiple of {unit}")
    return size


def _reduction(vae: Any) -> int:
    """Image pixels per latent pixel, in each direction."""
    return 1 << len(vae.block_out_channels) - 1
