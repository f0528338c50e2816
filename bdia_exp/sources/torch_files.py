"""State dicts in the files of `torch.save`: `.ckpt`, `.pt`, `.pth`, `.bin`.

Such a file has a pickle of the objects, and the numbers of each storage: since PyTorch 1.6 as
members of an uncompressed zip archive, before that one after the other. `pickles` interprets the
pickle, so nothing is executed. PyTorch's own unpickler is not used: a file can crash it (a deep
tuple as a key) or make it read outside its memory (a storage that is shorter than stated).
"""

import io
import mmap
import sys
import zipfile
import zlib
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdia_exp.errors import UserError, brief
from bdia_exp.sources.edm_pickles import MAX_NAME, placed, ready
from bdia_exp.sources.pickles import (
    BYTES,
    DICTS,
    ENCODE,
    OBJECT,
    PERSISTENT_ID,
    SETS,
    Call,
    Global,
    expect,
    interpret,
)
from bdia_exp.sources.state_dicts import weights_of

_PLAIN = "float32 float64 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 complex128 "
_PLAIN += "int64 int32 int16 int8 uint8 bool"
_DTYPES = {f"torch {name}": getattr(torch, name) for name in _PLAIN.split()}
_STORAGES = {
    f"torch {kind}Storage": dtype
    for kind, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "QInt8": torch.qint8,
        "QUInt8": torch.quint8,
        "QInt32": torch.qint32,
    }.items()
}
_STORAGES["torch.storage UntypedStorage"] = torch.uint8
_PLAIN_TENSORS = {f"torch._utils _rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_OTHER_TENSORS = {
    f"torch._utils _rebuild_{kind}"
    for kind in ("qtensor", "sparse_tensor", "meta_tensor_no_storage", "nested_tensor")
}
_PARAMETERS = {f"torch._utils _rebuild_parameter{more}" for more in ("", "_with_state")}
_WRAPPED = "torch._tensor _rebuild_from_type_v2"
# Objects that training programs store beside the weights: the class of a Lightning callback, as a
# key (in Stable Diffusion 1's files), and NumPy numbers.
UNUSED = {
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "numpy dtype",
    *("builtins bytearray", "builtins complex", "collections Counter"),
    *("torch Size", "torch device", "torch Tensor", "torch.nn.parameter Parameter"),
    *("torch.serialization _get_layout", "torch per_tensor_affine", "torch per_channel_affine"),
}
NAMES = {*_DTYPES, *_STORAGES, *_PLAIN_TENSORS, *_OTHER_TENSORS, *_PARAMETERS, _WRAPPED, *DICTS}
NAMES |= {*SETS, BYTES, ENCODE, OBJECT, PERSISTENT_ID, *UNUSED}
"""The names that a file may ask for. None of them is resolved."""


@dataclass(frozen=True)
class _Span:
    """The bytes of a storage in a file; `crc` is their CRC-32, 0 if it is not known."""

    start: int
    size: int
    crc: int = 0

    def read(self, path: Path) -> np.ndarray:
        """The bytes, uint8 [size]. Raises ValueError if they are not there or damaged."""
        data = np.fromfile(path, np.uint8, self.size, offset=self.start)
        if len(data) < self.size or (self.crc and zlib.crc32(data.data) != self.crc):
            raise ValueError("numbers are missing or changed")
        return data


def read_torch(path: Path) -> dict[str, Tensor]:
    """The weights in one of torch's files, as `weights_of` finds them: averaged (EMA) ones first.

    Raises UserError for known faults, and any other exception for damaged bytes;
    `checkpoints.read` turns those into a UserError too.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head.lstrip().startswith(b"<"):
        raise UserError("this is a web page, not a checkpoint; fetch it again")
    if head[257:262] == b"ustar":  # torch's oldest format
        raise UserError("this is a tar archive, which is not read")
    tensors = _Tensors()
    read = _zipped if head.startswith(b"PK\x03\x04") else _streamed
    root, spans = read(path, tensors)
    return _filled(path, weights_of(root), tensors.places, spans)


# -- the two formats -------------------------------------------------------------------------------

Contents = tuple[Any, dict[str, _Span]]
"""The objects of the pickle, and where the numbers of each storage are, by its key."""


def _zipped(path: Path, tensors: "_Tensors") -> Contents:
    """A zip archive with the members NAME/data.pkl and NAME/data/KEY."""
    spans = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UserError(
                    "refused: its members are compressed or encrypted; torch.save stores them"
                )
            file.seek(info.header_offset + 26)
            before = sum(int.from_bytes(file.read(2), "little") for _ in range(2))
            start = info.header_offset + 30 + before
            spans[info.filename.partition("/")[2]] = _Span(start, info.file_size, info.CRC)
    if "data.pkl" not in spans:
        raise UserError("this is a zip archive, but not one of torch.save")
    order = spans.get("byteorder")
    _require_order(order is None or order.read(path).tobytes() == b"little")
    root = interpret(io.BytesIO(spans["data.pkl"].read(path).data), NAMES, count(), tensors)
    return root, {name.removeprefix("data/"): span for name, span in spans.items()}


def _streamed(path: Path, tensors: "_Tensors") -> Contents:
    """The format before 1.6: five pickles (a magic number, a version, the machine, the objects, the
    storages' keys), then for each key the count in 8 bytes and the numbers."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Reads from a map stop at the end of the file, for any length that an instruction gives.
        counter = count()
        magic, version, machine, root, keys = (
            interpret(data, NAMES, counter, tensors)  # type: ignore[arg-type]
            for _ in range(5)
        )
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001):
            raise ValueError("no pickle of weights")
        _require_order(machine["little_endian"] is True)
        spans, start = {}, data.tell()
        for key in expect(keys, list):
            length = int.from_bytes(data[start : start + 8], "little")
            spans[key] = _Span(start + 8, length * tensors.storages[key].itemsize)
            start += 8 + spans[key].size
        if start > len(data):
            raise ValueError("the end is missing")
    return root, spans


def _require_order(little: bool) -> None:
    if little is not (sys.byteorder == "little"):
        raise UserError("its byte order is not that of this machine")


# -- tensors ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where the numbers of a tensor are: its storage, of `size` bytes, and its part of it."""

    key: str
    size: int
    dtype: torch.dtype
    part: tuple
    """Offset, size and stride."""


class _Tensors:
    """Called by `interpret`. Makes the tensors of a pickle on the meta device; `places` says where
    the numbers of each are (by its id; None if they are not stored one by one), and `storages` the
    type of each storage."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[Tensor, _Place | None]] = {}
        self.storages: dict[str, torch.dtype] = {}

    def __call__(self, call: Call) -> Any:
        if call.name == PERSISTENT_ID:
            word, kind, key, _, count, *view = expect(call.args[0], tuple)
            if word != "storage" or view not in ([], [None]):
                raise ValueError("no storage")
            dtype = self.storages[expect(key, str)] = _STORAGES[expect(kind, Global).name]
            return Call(call.name, (key, dtype, expect(count, int)))
        if call.name == _WRAPPED:
            function, _, args, *_ = call.args
            return self(Call(expect(function, Global).name, expect(args, tuple)))
        if call.name in _PARAMETERS:
            return call.args[0]
        if call.name in _PLAIN_TENSORS:
            return self._plain(*call.args)
        return self._kept((0,), None) if call.name in _OTHER_TENSORS else call

    def _plain(self, source: Any, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
        key, dtype, count = source.args
        length = count * dtype.itemsize
        if isinstance(more[-1] if more else None, Global):  # the type, for an untyped storage
            dtype = _DTYPES[more[-1].name]
        stored = dtype in _DTYPES.values()
        return self._kept(
            size, _Place(key, length, dtype, (offset, size, stride)) if stored else None
        )

    def _kept(self, size: tuple, place: _Place | None) -> Tensor:
        tensor = torch.empty(size, device="meta")
        self.places[id(tensor)] = tensor, place
        return tensor


def _filled(
    path: Path,
    state: dict[str, Tensor],
    places: dict[int, tuple[Tensor, _Place | None]],
    spans: dict[str, _Span],
) -> dict[str, Tensor]:
    """The tensors, float32 and contiguous, in the order of `state`. Each storage is read once.

    Raises UserError unless every number of every tensor is stored in the file.
    """
    of_storage: dict[str, list[tuple[str, _Place]]] = {}
    for name, tensor in state.items():
        _, place = places[id(tensor)]
        if len(name) > MAX_NAME:
            raise UserError(f"{brief(name)} is longer than any name of a tensor")
        if place is None:
            raise UserError(f"the tensor {brief(name)} is not stored number by number")
        if place.key not in spans or spans[place.key].size != place.size:
            raise UserError(f"the numbers of {brief(name)} are not as many as the file states")
        of_storage.setdefault(place.key, []).append((name, place))
    found, numbers = {}, 0
    for key, tensors in of_storage.items():
        storage = torch.from_numpy(spans[key].read(path)).untyped_storage()
        for name, place in tensors:
            view, (offset, size, stride) = torch.empty(0, dtype=place.dtype), place.part
            if state[name].numel():
                view = placed(view.set_(storage), offset, size, stride, name)
            if (numbers := numbers + view.numel()) > path.stat().st_size:
                raise UserError("refused: its tensors have more numbers than the file")
            found[name] = ready(view).view(state[name].shape)
    return {name: found[name] for name in state}
