"""Folders of the Hugging Face hub in diffusers' layout: pinned to a commit, verified.

`ORG/NAME@REVISION` is a pipeline (`model_index.json` and a folder for each part) or one network
(`config.json` and its weights, such as a ControlNet). They are fetched by the library
huggingface_hub, whose own settings hold: `HF_ENDPOINT` for a mirror, `HF_TOKEN` for models that ask
for a login. They lie under `hub/` in the cache of `fetch`, in the library's layout.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bdia_exp.errors import UserError
from bdia_exp.extras import require
from bdia_exp.sources import fetch
from bdia_exp.sources.downloads import say
from bdia_exp.sources.pickles import brief
from bdia_exp.store.files import write_text

SPEC = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", re.ASCII)
SAFE = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # of diffusers; transformers
PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
INDEX = "model_index.json"


def cached(spec: str) -> Path | None:
    """The folder of this pipeline or network if all of it was fetched. No network."""
    with suppress(OSError, ValueError, UserError):
        folder = _folder(*_parse(spec))
        sizes = json.loads(_record(folder).read_text("utf-8"))
        if all((folder / name).stat().st_size == size for name, size in sizes.items()):
            return folder
    return None


def get(spec: str) -> Path:
    """The folder of this pipeline or network; fetched, and verified then, if it is not there.

    It holds the configurations and the weights, the averaged ones in full precision: safetensors
    where there are any. Raises UserError, and nothing else, if it cannot be had or is not what the
    hub says it is.
    """
    repo, revision = _parse(spec)
    folder = _folder(repo, revision)
    if found := cached(spec):
        return found
    if fetch.offline():
        raise UserError(
            f"hub:{spec} is not here and BDIA_EXP_OFFLINE is set: run the same command where there "
            f"is a network, or bring {folder.parents[1]} from there"
        )
    library = require("huggingface_hub")
    try:
        with fetch.locked(folder.parents[1]):
            if not cached(spec):  # nor has another process brought it meanwhile
                _fetch(library, repo, revision, folder)
        return folder
    except UserError:
        raise
    except Exception as error:  # the library's own, those of its HTTP client, the disk's
        raise UserError(_told(error, repo, revision, folder)) from None


def _parse(spec: str) -> tuple[str, str]:
    if found := SPEC.fullmatch(spec):
        return found[1], found[2]
    repo, _, revision = spec.partition("@")
    missing = f"{revision!r} is no commit" if revision else "it names no commit"
    raise UserError(
        f"hub:{spec} may be something else tomorrow, for {missing}: write hub:ORG/NAME@REVISION "
        f"with the 40 hexadecimal digits of one from https://huggingface.co/{repo}/commits/main"
    )


def _folder(repo: str, revision: str) -> Path:
    """Where the library puts a snapshot, as its documentation says."""
    return fetch.cache() / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / revision


def _record(folder: Path) -> Path:
    """What we keep of a snapshot that is whole and verified: {file: bytes}."""
    return folder.parents[1] / f"{folder.name}.verified.json"


def _fetch(library: Any, repo: str, revision: str, folder: Path) -> None:
    info = library.HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or ()}
    wanted = _wanted(files)
    if not {INDEX, SAFE[0], PICKLED[0]} & set(wanted):
        raise UserError(
            f"hub:{repo}@{revision} is neither a pipeline nor a network in diffusers' layout: it "
            f"holds no {INDEX} and no {SAFE[0]}; give another model"
        )
    size = tqdm.format_sizeof(sum(files[name].size or 0 for name in wanted), "B")
    say(f"fetching {repo} from the Hugging Face hub: {len(wanted)} files, {size}")
    library.snapshot_download(
        repo, revision=revision, cache_dir=folder.parents[2], allow_patterns=wanted
    )
    for name in wanted:
        if fault := _fault(folder / name, files[name]):
            _remove(folder / name)
            raise UserError(
                f"what came as {name} of {repo} has {fault}, and was not kept: "
                "try again later, or from another HF_ENDPOINT"
            )
    sizes = {name: (folder / name).stat().st_size for name in wanted}
    write_text(_record(folder), json.dumps(sizes, indent=1))


def _wanted(names: Iterable[str]) -> list[str]:
    """Configurations and weights; no variant of a precision or program, no single file of all."""
    names = set(names)
    kept = []
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if not re.fullmatch(r"[\w-]*", folder, re.ASCII) or folder == "safety_checker":
            continue
        if bool(folder) != (INDEX in names):  # a pipeline is in folders, a network is not
            if name == INDEX:
                kept.append(name)
            continue
        prefix = f"{folder}/" if folder else ""
        safe = any(f"{prefix}{weights}" in names for weights in SAFE)
        texts = folder in ("scheduler", "tokenizer") and re.fullmatch(r"[\w-]+\.(json|txt)", file)
        if file == "config.json" or texts or file in (SAFE if safe else PICKLED):
            kept.append(name)
    return kept


def _fault(path: Path, published: Any) -> str:
    """How the file differs from what the hub says of it; nothing if it does not."""
    if published.lfs:
        wanted, found = published.lfs["sha256"], fetch.digest(path)
        return "" if found == wanted else f"sha256 {found}, not {wanted}"
    data = path.read_bytes()  # a small file, which Git knows by this hash
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    wanted = published.blob_id or found
    return "" if found == wanted else f"Git's hash {found}, not {wanted}"


def _remove(path: Path) -> None:
    """Deletes a file of a snapshot: a link to one that may itself be a link."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _told(error: Exception, repo: str, revision: str, folder: Path) -> str:
    """One sentence for what the library raises."""
    kinds = require("huggingface_hub.errors")
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, kinds.RevisionNotFoundError):
        return f"{repo} has no commit {revision}: take one from {page}/commits/main"
    if isinstance(error, kinds.GatedRepoError):
        return f"{repo} is gated: accept its terms at {page} and set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, kinds.RepositoryNotFoundError) or status in (401, 403):
        return f"the hub shows no model {repo}: look at its name, or set HF_TOKEN if it is private"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no room left on the disk for {repo} ({error.strerror}): free some, or set "
            "BDIA_EXP_CACHE to a folder on another, and run the same command again"
        )
    if isinstance(error, OSError) and error.filename:
        why = f"{error.filename} cannot be read or written ({error.strerror})"
        return f"{why}: set BDIA_EXP_CACHE to a folder of yours"
    why = brief(str(error.__cause__ or error).strip().partition("\n")[0]) or type(error).__name__
    return (
        f"{repo} cannot be fetched from the hub ({why}): look at the network, the proxy's settings "
        f"and HF_ENDPOINT, or bring {folder.parents[1]} from elsewhere"
    )
