"""The states that `invert` keeps for another trip: written to one file, read back and checked."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from bdia_exp.errors import UserError
from bdia_exp.samplers.fixedpoint import Log
from bdia_exp.samplers.inversion import Inversion, Kept
from bdia_exp.sources import checkpoints
from bdia_exp.store.files import atomic

STATES_FILE = "states.safetensors"


def save_states(path: Path, kept: Iterable[Kept]) -> str:
    """Writes the tensors kept of every batch to one file, under the names `batch.key`.

    Returns the sha256 of the file.
    """
    flat = {
        f"{number}.{key}": tensor.contiguous().cpu().clone()
        for number, one in enumerate(kept)
        for key, tensor in one.items()
    }
    data = save(flat)
    with atomic(path) as part:
        part.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_states(
    path: Path, sha256: str | None, like: Sequence[Tensor], inversion: Inversion, steps: int
) -> list[Kept]:
    """Reads what `save_states` wrote after `steps` steps of an inversion.

    `like` has one tensor for each batch, of the shape and dtype of its states, on the device on
    which they are needed. `sha256` is that of the file; None if its record, an older one, does not
    have it. Raises UserError if the file cannot be read or is not the one that was written.
    """
    try:
        if sha256 is not None and checkpoints.sha256(path) != sha256:
            raise ValueError("its sha256 is not the one of its record")
        batches: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(path, str(like[0].device)).items():
            number, _, key = name.partition(".")
            batches.setdefault(int(number), {})[key] = tensor
        if sorted(batches) != list(range(len(like))):
            raise ValueError(f"it has {len(batches)} batches, not {len(like)}")
        for kept, states in zip((batches[i] for i in range(len(like))), like, strict=True):
            _require_kept(kept, states, inversion, steps)
    except Exception as error:  # damaged bytes can cause any exception
        raise UserError(
            f"{path} cannot be read ({error}): remove that folder and run `bdia-exp invert` again"
        ) from None
    return [batches[number] for number in sorted(batches)]


def _require_kept(kept: Kept, like: Tensor, inversion: Inversion, steps: int) -> None:
    """Raises an exception unless the tensors of a batch are those that the inversion keeps."""
    for key in inversion.keeps:
        fixed = key.endswith(".fixed")
        tensor, dtype = kept[key], torch.int64 if fixed else like.dtype
        if tensor.shape != like.shape or tensor.dtype != dtype:
            found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ValueError(f"{key} is {found}, not {dtype} {list(like.shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")
    if "z.fixed" not in inversion.keeps:
        return
    log = Log.from_tensors(kept)
    digits = [log.buffer, *log.words, *(carry for carry in log.carries if carry is not None)]
    if (
        len(log) != max(steps - 1, 0)
        or any(min(step[:3]) < 1 for step in log.steps)
        or any(part.shape not in ((), like.shape) for part in digits)
    ):
        raise ValueError("its log is not that of these steps")
