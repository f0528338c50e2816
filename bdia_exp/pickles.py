"""EDM's pickles as data: interpreted, never executed.

The published `.pkl` files (https://github.com/NVlabs/edm) are one plain pickle each, whose official
loader runs Python source found inside the file. Here `pickletools.genops` parses the instructions,
and where one asks to import or to call something, a record of the request is kept (`_Global`,
`_Call`). No name is ever resolved and no call is ever made, so a hostile file can ask for what it
likes; the allow-list is there to say so in a clear sentence. Python's own unpicklers are not used:
behind an allow-list they still let `BUILD` write attributes, hash nested tuples until the C stack
overflows, and (the one in C) let six bytes ask for a memo of many gigabytes.
"""

import io
import math
import mmap
import pickletools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bdia_exp.errors import UserError

PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"

# Far above what a file of the largest published model holds, far below what exhausts a machine.
MAX_INSTRUCTIONS = 2_000_000
MAX_MODULE_DEPTH, MAX_NAME = 16, 300
MAX_OPTION_DEPTH, MAX_OPTION_LENGTH = 3, 64


def read_edm(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and the state dict of the EDMPrecond in one of EDM's pickles.

    Raises UserError for what is recognised as wrong, and any exception for bytes that make no
    sense: `checkpoints.read` turns those into a UserError too.
    """
    if not path.stat().st_size:
        raise UserError("the file is empty; fetch it again")
    # Reads from a map end where the file ends, whatever length an instruction claims.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:1] != b"\x80":
            kinds = {b"PK": "a zip archive (torch.save makes these)", b"<": "a web page"}
            head = data[:64].lstrip()
            kind = next((k for start, k in kinds.items() if head.startswith(start)), "another file")
            raise UserError(f"this is {kind}, not a pickle; EDM's are at {PUBLISHED}")
        root = _interpret(data, _EDM_GLOBALS)  # type: ignore[arg-type]

    if not isinstance(root, dict) or "ema" not in root:
        found = f"the entries {few(root)}" if isinstance(root, dict) else type(root).__name__
        raise UserError(f"no EDM checkpoint: it should be a dict with 'ema', but holds {found}")
    net = root["ema"]
    if not _asks(net, _PERSISTENT):
        raise UserError(f"'ema' is of type {type(net).__name__}, not a network")
    meta = net.args[0]
    if (name := _expect(meta["class_name"], str)) != "EDMPrecond":
        raise UserError(f"{brief(name)} is not supported: only EDMPrecond is")
    attributes, seen = meta["state"], set[int]()

    arguments = dict(zip(_INTERFACE, attributes.get("_init_args", ()), strict=False))
    arguments |= _expect(attributes["_init_kwargs"], dict)
    # The attributes are what the network ran with; arguments are only how it was asked for.
    arguments |= {k: attributes[k] for k in _INTERFACE if k in attributes}
    state = {name: _tensor(node, name, seen) for name, node in _entries(net, "", seen)}
    return plain(arguments), state


# --- the pickle interpreter -------------------------------------------------------------------

# EDMPrecond's arguments in order; all but the last are kept as attributes too.
_INTERFACE = ["img_resolution", "img_channels", "label_dim", "use_fp16"]
_INTERFACE += ["sigma_min", "sigma_max", "sigma_data", "model_type"]
_PERSISTENT = "torch_utils.persistence _reconstruct_persistent_obj"
_CONTAINERS = {
    f"torch.nn.modules.container {name}" for name in ("ModuleDict", "ModuleList", "Sequential")
}
_DICTS = {"collections OrderedDict", "dnnlib.util EasyDict"}
_PARAMETER, _TENSOR = "torch._utils _rebuild_parameter", "torch._utils _rebuild_tensor_v2"
_BYTES, _DTYPE, _OBJECT = "torch.storage _load_from_bytes", "numpy dtype", "copyreg _reconstructor"
_SCALARS = {f"numpy.{core}.multiarray scalar" for core in ("core", "_core")}
_OPAQUE = {"training.loss EDMLoss", "training.augment AugmentPipe", "builtins object"}
_EDM_GLOBALS = {_PERSISTENT, _PARAMETER, _TENSOR, _BYTES, _DTYPE, _OBJECT, "builtins set"}
_EDM_GLOBALS |= _CONTAINERS | _DICTS | _SCALARS | _OPAQUE
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
_PERSID = "pickle persistent_id"
_STORAGE_GLOBALS = {_PERSID, *_STORAGES}
_CONSTANT = re.compile(r"BININT[12]?|LONG[14]|BINFLOAT|(SHORT_)?BIN(UNICODE|BYTES)8?")
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True, eq=False)
class _Global:
    """A name the file asks to import, "module name"; never resolved."""

    name: str


@dataclass(eq=False, repr=False)
class _Call:
    """A call the file asks for, and the state it would then set; never made."""

    name: str
    args: tuple
    state: Any = None


def _asks(value: Any, *names: str) -> bool:
    return isinstance(value, _Call) and value.name in names


def _interpret(stream: BinaryIO, allowed: set[str]) -> Any:
    """One pickle (protocol 2 to 5) from the stream, as plain values, `_Global`s and `_Call`s.

    Sets come out as lists. Neither it nor what it returns needs recursion, however deep.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def take(count: int) -> list[Any]:
        items = stack[-count:]
        del stack[-count:]
        return items

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    def permit(name: str) -> str:
        if name not in allowed:
            asked = brief(name.replace(" ", "."))
            raise UserError(
                f"refused: it asks for {asked}, which no EDM checkpoint needs; nothing was executed"
            )
        return name

    for count, (op, arg, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_INSTRUCTIONS:
            raise UserError(f"refused: it has over {count:,} instructions, beyond any checkpoint")
        match op.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                outer.append(stack)
                stack = []
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]  # type: ignore[index]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])  # type: ignore[index]
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE" | "FROZENSET":
                items = since_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(take(int(op.name[-1]))))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = take(1) if op.name == "APPEND" else since_mark()
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = take(2) if op.name == "SETITEM" else since_mark()
                keys = [_expect(key, str, int) for key in items[::2]]
                _expect(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Global(permit(str(arg))))
            case "STACK_GLOBAL":
                module, name = (_expect(part, str) for part in take(2))
                stack.append(_Global(permit(f"{module} {name}")))
            case "REDUCE" | "NEWOBJ":
                callee, args = take(2)
                stack.append(_call(_expect(callee, _Global).name, _expect(args, tuple)))
            case "BUILD":
                state = stack.pop()
                # On a dict these are attributes of its class, which no entry depends on.
                if isinstance(_expect(stack[-1], _Call, dict), _Call):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(_Call(permit(_PERSID), (stack.pop(),)))
            case name if name in _FIXED:
                stack.append(_FIXED[name])
            case name if _CONSTANT.fullmatch(name):
                stack.append(arg)
            case name:
                raise UserError(f"refused: no EDM checkpoint needs the pickle instruction {name}")
    raise ValueError("no STOP")


def _expect(value: Any, *kinds: type) -> Any:
    """`value`, of exactly one of these types. Keys are strings or integers because hashing a
    tuple recurses in C, without a limit, as deep as the tuple is nested."""
    if type(value) not in kinds:
        raise ValueError(f"{type(value).__name__} where {kinds[0].__name__} belongs")
    return value


def _call(name: str, args: tuple) -> Any:
    if name in _DICTS and not args:
        return {}
    if name == "builtins set" and len(args) == 1:
        return _expect(args[0], list)
    if name == _OBJECT:
        return _Call(_expect(args[0], _Global).name, ())
    return _Call(name, args)


# --- from records to weights and options --------------------------------------------------------


def _entries(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Names and records of a recorded module's tensors, in the order of `state_dict`."""
    if not _asks(module, _PERSISTENT, *_CONTAINERS):
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
    """Refuses what lets a small file ask for endless work: depth, long names, sharing."""
    if name.count(".") > MAX_MODULE_DEPTH or len(name) > MAX_NAME:
        raise UserError(f"its modules are nested too deep, at {brief(name)}")
    if id(value) in seen:
        raise UserError(f"{brief(name)} is used twice, which no EDM network does")
    seen.add(id(value))


def _tensor(node: Any, name: str, seen: set[int]) -> Tensor:
    if _asks(node, _PARAMETER):
        node = node.args[0]
    if not _asks(node, _TENSOR) or not _asks(node.args[0], _BYTES):
        raise UserError(f"{brief(name)} is no tensor")
    source, offset, size, stride = node.args[:4]
    (data,) = source.args
    _admit(data, name, seen)
    flat = _storage(_expect(data, bytes), name)
    if len(size) != len(stride) or len(size) > 8:
        raise UserError(f"the tensor {brief(name)} has an impossible shape")
    numbers = [_expect(number, int) for number in (offset, *size, *stride)]
    reach = 1 + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # Every number is bounded before the product, which may otherwise be astronomical.
    if not all(0 <= number <= flat.numel() for number in numbers) or not (
        0 < math.prod(size) <= flat.numel() and reach <= flat.numel()
    ):
        raise UserError(f"the tensor {brief(name)} reaches outside its {flat.numel()} numbers")
    return ready(flat.as_strided(size, stride, offset))


def ready(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _storage(data: bytes, name: str) -> Tensor:
    """The numbers, 1-D, of a storage written by `torch.save` in its format before version 1.6.

    That is five pickles (a magic number, a version, the machine, a persistent id that describes
    the storage, its key), then the count as 8 bytes, then the numbers.
    """
    stream = io.BytesIO(data)
    magic, version, machine, storage, _ = (_interpret(stream, _STORAGE_GLOBALS) for _ in range(5))
    if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or not _asks(storage, _PERSID):
        raise UserError(f"the tensor {brief(name)} is not stored as EDM's are")
    if machine["little_endian"] is not (sys.byteorder == "little"):
        raise UserError("its byte order is not this machine's")
    _, kind, _, _, count, view = storage.args[0]
    dtype, start = _STORAGES[_expect(kind, _Global).name], stream.tell() + 8
    stored = int.from_bytes(data[start - 8 : start], sys.byteorder)
    if view is not None or not stored == count == (len(data) - start) / dtype.itemsize > 0:
        raise UserError(f"the tensor {brief(name)} is empty, or has another size than it says")
    return torch.frombuffer(bytearray(memoryview(data)[start:]), dtype=dtype)


def plain(value: Any, name: str = "the configuration", depth: int = 0) -> Any:
    """Options as plain Python: numpy scalars become numbers, tuples lists."""
    if isinstance(value, (dict, list, tuple)):
        if depth == MAX_OPTION_DEPTH or len(value) > MAX_OPTION_LENGTH:
            raise UserError(f"{brief(name)} is too deep or too long for a network's options")
        if isinstance(value, dict):
            return {_expect(k, str): plain(v, k, depth + 1) for k, v in value.items()}
        return [plain(v, name, depth + 1) for v in value]
    if _asks(value, *_SCALARS):
        value = _scalar(*value.args)
    if isinstance(value, str) and len(value) > MAX_NAME:
        raise UserError(f"{brief(name)} has a text longer than any option of a network")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise UserError(f"{brief(name)} has a number larger than any option of a network")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{brief(name)} has a value that is no option of a network")


def _scalar(dtype: Any, raw: Any) -> bool | int | float:
    """The number in a pickled numpy scalar: its dtype's call, (code, align, copy), and bytes."""
    code = dtype.args[0] if _asks(dtype, _DTYPE) else None
    if code not in ("b1", "i4", "i8", "f2", "f4", "f8") or dtype.state[1] not in ("<", "|"):
        raise UserError("it holds a numpy scalar that is no plain little-endian number")
    (number,) = np.frombuffer(_expect(raw, bytes), "<" + code).tolist()
    return number


def brief(text: Any) -> str:
    """Safe to print on one line, whatever the file put there."""
    text = ascii(str(text))[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


def few(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(brief(name) for name in names[:3]) + more
