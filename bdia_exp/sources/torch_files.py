"""State dicts in the files of `torch.save`: `.ckpt`, `.pt`, `.pth`, `.bin`.

They are read by torch's restricted unpickler (`weights_only`), which makes tensors and plain
containers, and refuses whatever else a file asks for. It executes nothing, but unlike
`bdia_exp.sources.pickles` it can be crashed or stalled by a file made for that.
"""

import re
import tarfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.sources.edm_pickles import ready
from bdia_exp.sources.pickles import brief, few

# Where a dict may keep its state dict, averaged weights first.
INNER = ("ema", "ema_state_dict", "shadow", "state_dict", "model")
MAX_DEPTH = 4


class _Inert:
    """Stands for what a file names beside its weights: takes whatever comes, and does nothing."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# What training programs leave beside the weights: Lightning the class of a callback, as a key (in
# Stable Diffusion 1's files), and numbers of NumPy's. None of these names is resolved.
UNUSED = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


def read_torch(path: Path) -> dict[str, Tensor]:
    """The weights in one of torch's files, by name without `module.`; averaged (EMA) ones first.

    That is a state dict, or one inside a dict under one of the names in `INNER`, or the last of
    a list: DDIM's training program writes [weights, optimiser, epoch, step, averaged weights].

    Beside them a file may hold what `UNUSED` names; that is left out.

    Raises UserError for what is recognised as wrong, and any exception for bytes that make no
    sense: `checkpoints.read` turns those into a UserError too.
    """
    with open(path, "rb") as file:
        if file.read(64).lstrip().startswith(b"<"):
            raise UserError("this is a web page, not a checkpoint; fetch it again")
    # Before 2.6 torch read these, its oldest format, with an unrestricted unpickler.
    if tarfile.is_tarfile(path):
        raise UserError("this is a tar archive, which is not read")
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in UNUSED]):
            root = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"refused: it asks for {brief(asked[1])}, which no file of weights needs; "
                "nothing was executed"
            ) from None
        raise ValueError("no pickle of weights") from None
    return {
        name.removeprefix("module."): _owned(name, tensor)
        for name, tensor in _state_dict(root).items()
    }


def _state_dict(root: Any) -> dict[str, Tensor]:
    inside = root
    for _ in range(MAX_DEPTH):
        if _is_state_dict(inside):
            return inside
        if isinstance(inside, (list, tuple)):
            inside = next(filter(_is_state_dict, reversed(inside)), None)
        elif isinstance(inside, dict):
            found = (inside[key] for key in INNER if isinstance(inside.get(key), dict))
            inside = next(found, None)
    what = f"a dict of {few(root)}" if isinstance(root, dict) and root else type(root).__name__
    raise UserError(f"no weights in it: it should hold names with their tensors, but is {what}")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _owned(name: str, tensor: Tensor) -> Tensor:
    """Float32 and contiguous; refuses what is not stored number by number, or asks for more."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"the tensor {brief(name)} is not stored number by number")
    return ready(tensor.detach())
