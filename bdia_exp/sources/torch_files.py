"""State dicts in the files of `torch.save`: `.ckpt`, `.pt`, `.pth`, `.bin`.

They are read by torch's restricted unpickler (`weights_only`), which makes tensors and plain
containers and refuses all other names in a file. It executes nothing, but unlike
`bdia_exp.sources.pickles` a file made for this purpose can crash or block it.
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
    """Replaces objects that a file has beside its weights: takes any arguments, does nothing."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# Objects that training programs store beside the weights: the class of a Lightning callback, as a
# key (in Stable Diffusion 1's files), and NumPy numbers. None of these names is resolved.
UNUSED = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


def read_torch(path: Path) -> dict[str, Tensor]:
    """The weights in one of torch's files, by name without `module.`; averaged (EMA) ones first.

    The file is a state dict, or a dict with one under a name in `INNER`, or a list, whose last
    state dict is used: DDIM's program writes [weights, optimiser, epoch, step, averaged weights].

    Objects of the classes in `UNUSED` are left out.

    Raises UserError for known faults, and any other exception for damaged bytes;
    `checkpoints.read` turns those into a UserError too.
    """
    with open(path, "rb") as file:
        if file.read(64).lstrip().startswith(b"<"):
            raise UserError("this is a web page, not a checkpoint; fetch it again")
    # This is torch's oldest format; before 2.6 torch read it with an unrestricted unpickler.
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
    raise UserError(f"no weights in it: it should have names with tensors, but is {what}")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _owned(name: str, tensor: Tensor) -> Tensor:
    """Float32 and contiguous. Raises UserError unless every number is stored in the file."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"the tensor {brief(name)} is not stored number by number")
    return ready(tensor.detach())
