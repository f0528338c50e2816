"""Loads checkpoints from files, with their sha256; never executes a pickle.

Files that describe their network: EDM's published `.pkl`, read by `edm_pickles`, and our own
`.safetensors` of EDM networks. These have only weights; the JSON of the same name beside them has
`{"network": {constructor arguments}, "training": {how it was made}}`.

Files that do not: torch's, read by `torch_files`, other `.safetensors`, and a folder with either
of these in diffusers' layout.
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

from bdia_exp.errors import UserError, brief, few
from bdia_exp.sources import fetch, hub
from bdia_exp.sources.edm_pickles import PUBLISHED, plain, read_edm, ready
from bdia_exp.sources.folders import weights_in
from bdia_exp.sources.state_dicts import weights_of
from bdia_exp.sources.torch_files import read_torch
from bdia_exp.store.files import digest

BUNDLED = Path(__file__).parents[1] / "bundled"
MAX_HEADER, MAX_DESCRIPTION = 10_000_000, 10_000_000
"""Bytes of a .safetensors file's header and of the JSON beside it: many times those of the largest
network. Each entry of a header takes much more memory than its text."""

PIPELINE = ("unet", "vae", "text_encoder")
"""The networks of a pipeline's folder."""
DESCRIPTIONS = (*(f"{part}/config.json" for part in PIPELINE), "scheduler/*.json", "tokenizer/*.*")


Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]  # config, state, record


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network as data: `Network(**config)` and `load_into` build the network from it.

    `config` has plain Python values; it is empty if the file does not describe its network. `state`
    has the names of `net.state_dict()`, or those of the file if they differ; floating-point entries
    are float32, all are contiguous and on the CPU. `record` is the training record of our own
    models, empty for others.
    """

    config: dict[str, Any]
    state: dict[str, Tensor] = field(repr=False)
    sha256: str
    path: Path
    record: dict[str, Any] = field(default_factory=dict)


def located(name: str) -> str | Path:
    """The path of a name with a prefix (`locate`); any other name as it is."""
    return locate(name) if name.startswith(("bundled:", "fetch:", "hub:")) else name


def locate(name: str, advice: str = "") -> Path:
    """The path that `name` means: `bundled:FILE`, a file or folder of the package; `fetch:FILE`, a
    published file; `hub:ORG/NAME@COMMIT`, a folder of the Hugging Face hub (these two are
    downloaded into the cache if they are not there yet); or a path.

    Raises UserError if nothing is there, with `advice` on what to do, and as `fetch.get` and
    `hub.get` do.
    """
    if name.startswith("hub:"):
        return hub.get(name.removeprefix("hub:"))
    if name.startswith("fetch:"):
        return fetch.get(name.removeprefix("fetch:"))
    if name.startswith("bundled:"):
        known = {path.name: path for path in sorted(BUNDLED.glob("*"))}
        if (file := name.removeprefix("bundled:")) in known:
            return known[file]
        raise UserError(f"no bundled file is called {file!r}; known: {', '.join(known) or 'none'}")
    # A name that is too long, or an unknown user's home (~user), also counts as a missing file.
    with contextlib.suppress(OSError, RuntimeError):
        if (path := Path(name).expanduser()).exists():
            return path
    if not advice:
        advice = "give the path of a file, bundled:FILE, fetch:FILE or hub:ORG/NAME@COMMIT"
        advice += f"; EDM's checkpoints are at {PUBLISHED}" if name.endswith(".pkl") else ""
    raise UserError(f"nothing is at {name}: {advice}")


def present(name: str) -> Path | None:
    """Like `locate`, without a download: None if the file is not on this machine."""
    if name.startswith("hub:"):
        return hub.cached(name.removeprefix("hub:"))
    if name.startswith("fetch:"):
        return fetch.cached(name.removeprefix("fetch:"))
    with contextlib.suppress(UserError):
        return locate(name)
    return None


def description(name: str) -> str | None:
    """The JSON that describes the network of a .safetensors file given by its path.

    None for other files. A file of the package and its JSON are one: it is None for them too.
    """
    if name.startswith(("bundled:", "fetch:", "hub:")) or not name.endswith(".safetensors"):
        return None
    return name.removesuffix(".safetensors") + ".json"


def sha256(path: str | Path) -> str:
    """The file's sha256 in hexadecimal, computed once; for a network's folder, of its weights; if
    these are in several files, the sha256 of their concatenated sha256s.

    For a pipeline's folder: the sha256 of the concatenated hexadecimal sha256s of all files that
    decide an image. They are the weights of `PIPELINE`, then the configurations, scheduler and
    tokenizer (`DESCRIPTIONS`), in the order of their paths. Raises UserError if a folder has no
    weights.
    """
    path = Path(path)
    if (path / "unet").is_dir():
        files = [file for part in PIPELINE for file in weights_in(path / part)]
        files += sorted({f for pattern in DESCRIPTIONS for f in path.glob(pattern) if f.is_file()})
    else:
        files = weights_in(path) if os.path.isdir(path) else [path]
    found = [_digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    return digest(path)


def read(path: str | Path) -> Checkpoint:
    """The checkpoint in a file of one of the formats above, or in a folder of diffusers.

    Executes nothing in the file. Raises only UserError, for any bytes.
    """
    path = Path(path)
    files = weights_in(path) if os.path.isdir(path) else [path]  # Path.is_dir may raise an error
    config, state, record = _read_file(files[0])
    for file in files[1:]:
        _, more, _ = _read_file(file)
        if both := state.keys() & more.keys():
            raise UserError(f"{path}: more than one of its files has {few(both)}")
        state |= more
    whole = files[0] if len(files) == 1 else path
    return Checkpoint(config, state, sha256(whole), whole, record)


def _read_file(path: Path) -> Parts:
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    readers |= dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), _read_torch)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path} is not a file of weights: give one of {', '.join(readers)}")
    try:
        return readers[suffix](path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to a negative position in a truncated file
            raise UserError(f"{path} is damaged or incomplete; fetch it again") from error
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes can cause any exception, MemoryError too
        what = f"{type(error).__name__}: {brief(error)}"
        raise UserError(f"{path} is damaged or incomplete ({what}); fetch it again") from error


def load_into(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the checkpoint's weights into `net`, by name; `net` may be on the meta device.

    `net` is unchanged if they do not fit. Raises UserError with the names of entries that are
    missing, unexpected, of another shape, of another kind of number, or not finite.
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


def _read_safetensors(path: Path) -> Parts:
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < header <= path.stat().st_size:
        raise UserError(f"its header has {header:,} bytes, more than that of any network")
    state = {name: ready(tensor) for name, tensor in weights_of(load_file(path)).items()}
    # EDM's networks have many sizes; for other kinds the configuration gives the network.
    if "model.map_layer0.weight" not in state:
        return {}, state, {}
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise UserError(f"the description {beside.name} is missing beside it")
    config, record = _description(beside)
    return config, state, record


def _description(beside: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The network and the training record in the JSON beside a file of weights."""
    if beside.stat().st_size > MAX_DESCRIPTION:
        raise UserError(f"{beside.name} beside it is larger than any description of a network")
    try:
        about = json.loads(beside.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{beside.name} beside it is not valid JSON") from None
    about = about if isinstance(about, dict) else {}
    network, record = about.get("network"), about.get("training", {})
    if not isinstance(network, dict) or not isinstance(record, dict):
        shape = '{"network": {...}, "training": {...}}'
        raise UserError(f"{beside.name} beside it is not of the form {shape}")
    return plain(network), record


def _read_pickle(path: Path) -> Parts:
    config, state = read_edm(path)
    return config, state, {}


def _read_torch(path: Path) -> Parts:
    return {}, read_torch(path), {}
