"""Reads a network's options and tensors from EDM's pickles.

Each published `.pkl` file (https://github.com/NVlabs/edm) is one plain pickle. Its official loader
runs Python source from the file. Instead, `pickles` turns the file into data, and this module reads
the data.
"""

import io
import itertools
import math
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdia_exp.errors import UserError, brief, few
from bdia_exp.sources.pickles import (
    BYTES,
    DICTS,
    ENCODE,
    OBJECT,
    PERSISTENT_ID,
    SETS,
    Global,
    asks,
    expect,
    interpret,
)

PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"

MAX_MODULE_DEPTH, MAX_NAME = 16, 300
MAX_OPTION_DEPTH, MAX_OPTION_LENGTH = 3, 64

# EDMPrecond's arguments in order; all but the last are also stored as attributes.
_INTERFACE = ["img_resolution", "img_channels", "label_dim", "use_fp16"]
_INTERFACE += ["sigma_min", "sigma_max", "sigma_data", "model_type"]
_PERSISTENT = "torch_utils.persistence _reconstruct_persistent_obj"
_CONTAINERS = {
    f"torch.nn.modules.container {name}" for name in ("ModuleDict", "ModuleList", "Sequential")
}
_PARAMETER, _TENSOR = "torch._utils _rebuild_parameter", "torch._utils _rebuild_tensor_v2"
_STORED, _DTYPE = "torch.storage _load_from_bytes", "numpy dtype"
_SCALARS = {f"numpy.{core}.multiarray scalar" for core in ("core", "_core")}
_OPAQUE = {"training.loss EDMLoss", "training.augment AugmentPipe", "builtins object"}
_EDM_GLOBALS = {_PERSISTENT, _PARAMETER, _TENSOR, _STORED, _DTYPE, OBJECT, ENCODE, BYTES}
_EDM_GLOBALS |= SETS | _CONTAINERS | DICTS | _SCALARS | _OPAQUE
_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
}
_STORAGE_GLOBALS = {PERSISTENT_ID, *_STORAGES}


def read_edm(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and the state dict of the EDMPrecond in one of EDM's pickles.

    Raises UserError for known faults, and any other exception for damaged bytes;
    `checkpoints.read` turns those into a UserError too.
    """
    if not path.stat().st_size:
        raise UserError("the file is empty; fetch it again")
    counter = itertools.count()
    # Reads from a map stop at the end of the file, for any length that an instruction gives.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Protocol 2 and later, 1, and 0: there the first instruction makes the dict.
        if not data[:3].startswith((b"\x80", b"}q", b"(dp")):
            kinds = {b"PK": "a zip archive (torch.save makes these)", b"<": "a web page"}
            head = data[:64].lstrip()
            kind = next((k for start, k in kinds.items() if head.startswith(start)), "another file")
            raise UserError(f"this is {kind}, not a pickle; EDM's are at {PUBLISHED}")
        root = interpret(data, _EDM_GLOBALS, counter)  # type: ignore[arg-type]

    if not isinstance(root, dict) or "ema" not in root:
        found = f"the entries {few(root)}" if isinstance(root, dict) else type(root).__name__
        raise UserError(f"no EDM checkpoint: it should be a dict with 'ema', but holds {found}")
    net = root["ema"]
    if not asks(net, _PERSISTENT):
        raise UserError(f"'ema' is of type {type(net).__name__}, not a network")
    meta = net.args[0]
    if (name := expect(meta["class_name"], str)) != "EDMPrecond":
        raise UserError(f"{brief(name)} is not supported: only EDMPrecond is")
    attributes, seen = meta["state"], set[int]()

    arguments = dict(zip(_INTERFACE, attributes.get("_init_args", ()), strict=False))
    arguments |= expect(attributes["_init_kwargs"], dict)
    # If they differ, the attributes are right: the trained network used them.
    arguments |= {k: attributes[k] for k in _INTERFACE if k in attributes}
    entries = _entries(net, "", seen)
    state = {name: _tensor(node, name, seen, counter) for name, node in entries}
    return plain(arguments), state


# --- from records to weights and options --------------------------------------------------------


def _entries(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Names and recorded calls of a module's tensors, in the order of `state_dict`."""
    if not asks(module, _PERSISTENT, *_CONTAINERS):
        raise UserError(f"{brief(prefix)} is no module")
    _admit(module, prefix, seen)
    attributes = module.args[0]["state"] if module.name == _PERSISTENT else module.state
    hidden = attributes.get("_non_persistent_buffers_set", ())
    for name, node in (attributes["_parameters"] | attributes["_buffers"]).items():
        if node is not None and name not in hidden:
            yield prefix + name, node
    for name, child in attributes["_modules"].items():
        if child is not None:
            yield from _entries(child, f"{prefix}{name}.", seen)


def _admit(value: Any, name: str, seen: set[int]) -> None:
    """Refuses what could make a small file cause endless work: depth, long names, sharing."""
    if name.count(".") > MAX_MODULE_DEPTH or len(name) > MAX_NAME:
        raise UserError(f"its modules are nested too deep, at {brief(name)}")
    if id(value) in seen:
        raise UserError(f"{brief(name)} is used twice, which no EDM network does")
    seen.add(id(value))


def _tensor(node: Any, name: str, seen: set[int], counter: Iterator[int]) -> Tensor:
    if asks(node, _PARAMETER):
        node = node.args[0]
    if not asks(node, _TENSOR) or not asks(node.args[0], _STORED):
        raise UserError(f"{brief(name)} is no tensor")
    source, offset, size, stride = node.args[:4]
    (data,) = source.args
    data = data.args[0] if asks(data, ENCODE) else data
    _admit(data, name, seen)
    return ready(placed(_storage(_bytes(data), name, counter), offset, size, stride, name))


def placed(flat: Tensor, offset: int, size: tuple, stride: tuple, name: str) -> Tensor:
    """A view of the numbers of a storage. Raises UserError if it reaches outside of them."""
    if len(size) != len(stride) or len(size) > 8:
        raise UserError(f"the tensor {brief(name)} has an impossible shape")
    numbers = [expect(number, int) for number in (offset, *size, *stride)]
    reach = 1 + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # Every number is checked before the product, which could otherwise be huge.
    if not all(0 <= number <= flat.numel() for number in numbers) or not (
        0 < math.prod(size) <= flat.numel() and reach <= flat.numel()
    ):
        raise UserError(f"the tensor {brief(name)} reaches outside its {flat.numel()} numbers")
    return flat.as_strided(size, stride, offset)


def ready(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _bytes(data: Any) -> bytes:
    """Bytes, which protocols 0 to 2 write as text: one character for each byte."""
    return data.encode("latin-1") if isinstance(data, str) else expect(data, bytes)


def _storage(data: bytes, name: str, counter: Iterator[int]) -> Tensor:
    """The numbers, 1-D, of a storage in the format of `torch.save` before version 1.6.

    It has five pickles (a magic number, a version, the machine, a persistent id that describes the
    storage, its key), then the count in 8 bytes, then the numbers.
    """
    stream = io.BytesIO(data)
    magic, version, machine, storage, _ = (
        interpret(stream, _STORAGE_GLOBALS, counter) for _ in range(5)
    )
    if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or not asks(storage, PERSISTENT_ID):
        raise UserError(f"the tensor {brief(name)} is not stored in the format of EDM's files")
    if machine["little_endian"] is not (sys.byteorder == "little"):
        raise UserError("its byte order is not that of this machine")
    _, kind, _, _, count, view = storage.args[0]
    dtype, start = _STORAGES[expect(kind, Global).name], stream.tell() + 8
    stored = int.from_bytes(data[start - 8 : start], sys.byteorder)
    if view is not None or not stored == count == (len(data) - start) / dtype.itemsize > 0:
        raise UserError(f"the tensor {brief(name)} is empty, or has another size than stated")
    return torch.frombuffer(bytearray(memoryview(data)[start:]), dtype=dtype)


def plain(value: Any, name: str = "the configuration", depth: int = 0) -> Any:
    """Options as plain Python: numpy scalars become numbers, and tuples become lists."""
    if isinstance(value, (dict, list, tuple)):
        if depth == MAX_OPTION_DEPTH or len(value) > MAX_OPTION_LENGTH:
            raise UserError(f"{brief(name)} is too deep or too long for a network's options")
        if isinstance(value, dict):
            return {expect(k, str): plain(v, k, depth + 1) for k, v in value.items()}
        return [plain(v, name, depth + 1) for v in value]
    if asks(value, *_SCALARS):
        value = _scalar(*value.args)
    if isinstance(value, str) and len(value) > MAX_NAME:
        raise UserError(f"{brief(name)} has a text longer than any option of a network")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise UserError(f"{brief(name)} has a number larger than any option of a network")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{brief(name)} has a value that is no option of a network")


def _scalar(dtype: Any, raw: Any) -> bool | int | float:
    """The number in a pickled numpy scalar: the call of its dtype, and its bytes."""
    code = dtype.args[0] if asks(dtype, _DTYPE) else None
    if code not in ("b1", "i4", "i8", "f2", "f4", "f8") or dtype.state[1] not in ("<", "|"):
        raise UserError("it holds a numpy scalar that is no plain little-endian number")
    raw = raw.args[0] if asks(raw, ENCODE) else raw
    (number,) = np.frombuffer(_bytes(raw), "<" + code).tolist()
    return number
