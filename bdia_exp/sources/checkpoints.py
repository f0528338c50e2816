"""What may be loaded, from where, with which sha256; never executes a pickle.

Files that describe their network: EDM's published `.pkl`, as `edm_pickles` reads them,
and our own `.safetensors`, which hold weights alone; a JSON of the same stem beside them holds
`{"network": {constructor arguments}, "training": {how it was made}}`.

Files that do not: torch's, as `torch_files` reads them, other `.safetensors`, and a folder
with either of them in diffusers' layout.
"""

import contextlib
import errno
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from bdia_exp.errors import UserError
from bdia_exp.sources import fetch, hub
from bdia_exp.sources.edm_pickles import PUBLISHED, plain, read_edm, ready
from bdia_exp.sources.pickles import brief, few
from bdia_exp.sources.torch_files import read_torch

BUNDLED = Path(__file__).parents[1] / "bundled"

# The networks of a pipeline, and what diffusers and transformers call a network's weights: the
# first of these that is there is read. fp16 is a variant for those who keep no other.
PIPELINE = ("unet", "vae", "text_encoder")
DESCRIPTIONS = (*(f"{part}/config.json" for part in PIPELINE), "scheduler/*.json", "tokenizer/*.*")
WEIGHTS = [
    f"{name}{variant}.{suffix}"
    for variant in ("", ".fp16")
    for name, suffix in (
        ("diffusion_pytorch_model", "safetensors"),
        ("diffusion_pytorch_model", "bin"),
        ("model", "safetensors"),
        ("pytorch_model", "bin"),
    )
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network as data: `Network(**config)` and `load_into` make it one again.

    `config` holds plain Python values, none if the file does not describe its network. `state` has
    the names of `net.state_dict()`, or the file's own if that has others; floating-point entries
    are float32, all are contiguous and on the CPU. `record` is the training record of our own
    models, else empty.
    """

    config: dict[str, Any]
    state: dict[str, Tensor] = field(repr=False)
    sha256: str
    path: Path
    record: dict[str, Any] = field(default_factory=dict)


def locate(name: str) -> Path:
    """What `name` stands for: `bundled:FILE`, one that came with the package, `fetch:FILE`, one
    that is published and is downloaded into the cache if it is not there yet; likewise
    `hub:ORG/NAME@COMMIT`, a folder of the Hugging Face hub; or a path.

    Raises UserError if nothing is there, and as `fetch.get` and `hub.get` do.
    """
    if name.startswith("hub:"):
        return hub.get(name.removeprefix("hub:"))
    if name.startswith("fetch:"):
        return fetch.get(name.removeprefix("fetch:"))
    if name.startswith("bundled:"):
        known = {path.name: path for path in sorted(BUNDLED.glob("*")) if path.is_file()}
        if (file := name.removeprefix("bundled:")) in known:
            return known[file]
        raise UserError(f"no bundled file is called {file!r}; known: {', '.join(known) or 'none'}")
    # A name too long for the system, or of nobody's home, is a missing file too.
    with contextlib.suppress(OSError, RuntimeError):
        if (path := Path(name).expanduser()).exists():
            return path
    raise UserError(
        f"nothing is at {name}: give the path of a file, bundled:FILE, fetch:FILE or "
        "hub:ORG/NAME@COMMIT; "
        f"EDM's checkpoints are published at {PUBLISHED}"
    )


def present(name: str) -> Path | None:
    """As `locate`, without a download: None if the file is not on this machine."""
    if name.startswith("hub:"):
        return hub.cached(name.removeprefix("hub:"))
    if name.startswith("fetch:"):
        return fetch.cached(name.removeprefix("fetch:"))
    with contextlib.suppress(UserError):
        return locate(name)
    return None


def sha256(path: str | Path) -> str:
    """The file's sha256 in hexadecimal, read once; of a network's folder, that of the weights.

    Of a pipeline's folder it is the sha256 of the hexadecimal sha256s of all that decides an image,
    one after the other: the weights of its networks, `PIPELINE`, then what describes them, the
    scheduler and the tokenizer, `DESCRIPTIONS`, in the order of their paths. Raises UserError if a
    folder holds no weights.
    """
    path = Path(path)
    if (path / "unet").is_dir():
        files = [_weights_in(path / part) for part in PIPELINE]
        files += sorted({file for pattern in DESCRIPTIONS for file in path.glob(pattern)})
        return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    path = _weights_in(path) if os.path.isdir(path) else path
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    return fetch.digest(path)


def read(path: str | Path) -> Checkpoint:
    """The checkpoint in a file of one of the formats above, or in a folder of diffusers'.

    Executes nothing of the file. Raises UserError, and nothing else, whatever the bytes are.
    """
    path = Path(path)
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    readers |= dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), _read_torch)
    if os.path.isdir(path):  # unlike Path.is_dir it raises nothing
        path = _weights_in(path)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path} is none of the files that hold weights: {', '.join(readers)}")
    try:
        config, state, record = readers[suffix](path)
        return Checkpoint(config, state, sha256(path), path, record)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch seeks to before the beginning of a cut file
            raise UserError(f"{path} is damaged or incomplete; fetch it again") from error
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes can break a parser in any way; MemoryError is one of them
        what = f"{type(error).__name__}: {brief(error)}"
        raise UserError(f"{path} is damaged or incomplete ({what}); fetch it again") from error


def load_into(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Makes the checkpoint's weights those of `net`, by name; `net` may be on the meta device.

    `net` is untouched if they do not fit.
    Raises UserError naming entries that are missing, unexpected, of another shape, of another kind
    of number or not finite.
    """
    wanted, given = net.state_dict(), checkpoint.state
    shared = [k for k in wanted if k in given]
    faults = {
        "missing": [k for k in wanted if k not in given],
        "unexpected": [k for k in given if k not in wanted],
        "of another shape": [
            f"{k} {list(given[k].shape)}, not {list(wanted[k].shape)}"
            for k in shared
            if given[k].shape != wanted[k].shape
        ],
        "of another kind of number": [
            f"{k} {given[k].dtype}"
            for k in shared
            if given[k].is_floating_point() != wanted[k].is_floating_point()
        ],
        "not finite": [k for k in shared if not given[k].isfinite().all()],
    }
    told = [f"{what}: {few(names)}" for what, names in faults.items() if names]
    if told:
        raise UserError(f"{checkpoint.path} does not fit this network; {'; '.join(told)}")
    net.load_state_dict(given, assign=True)


Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]  # config, state, record


def _read_safetensors(path: Path) -> Parts:
    beside = path.with_suffix(".json")
    state = {name: ready(tensor) for name, tensor in load_file(path).items()}
    if not beside.is_file():
        # EDM's networks come in many sizes; whoever loads another kind knows its network.
        if "model.map_layer0.weight" in state:
            raise UserError(f"the description {beside.name} is missing beside it")
        return {}, state, {}
    try:
        about = json.loads(beside.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{beside.name} beside it is not valid JSON") from None
    network, record = (
        (about.get("network"), about.get("training", {})) if isinstance(about, dict) else (None, {})
    )
    if not isinstance(network, dict) or not isinstance(record, dict):
        shape = '{"network": {...}, "training": {...}}'
        raise UserError(f"{beside.name} beside it is not of the form {shape}")
    return plain(network), state, record


def _read_pickle(path: Path) -> Parts:
    config, state = read_edm(path)
    return config, state, {}


def _read_torch(path: Path) -> Parts:
    return {}, read_torch(path), {}


def _weights_in(folder: Path) -> Path:
    """The file of a network's folder in the layout of diffusers or transformers."""
    for name in WEIGHTS:
        if (path := folder / name).is_file():
            return path
    raise UserError(f"{folder} cannot be read: a folder must hold {' or '.join(WEIGHTS[:4])}")
