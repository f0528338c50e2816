"""Folders of the Hugging Face hub in diffusers' layout: pinned to a commit, verified.

`ORG/NAME@REVISION` is a pipeline (`model_index.json` and a folder for each part) or one network,
such as a ControlNet (`config.json` and its weights). The library huggingface_hub downloads them and
uses its own settings: `HF_ENDPOINT` for a mirror, `HF_TOKEN` for models that need a login. They are
under `hub/` in the cache of `fetch`, in the library's layout.
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

from bdia_exp.errors import UserError, brief
from bdia_exp.extras import require
from bdia_exp.sources import fetch
from bdia_exp.sources.downloads import say
from bdia_exp.sources.folders import index_of
from bdia_exp.store.files import digest, json_object, write_text

SPEC = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", re.ASCII)
SAFE = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # of diffusers; transformers
PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
INDEX = "model_index.json"


def cached(spec: str) -> Path | None:
    """The folder of this pipeline or network if it is complete. No network access."""
    with suppress(OSError, ValueError, UserError):
        folder = _folder(*_parse(spec))
        sizes = json_object(_record(folder).read_text("utf-8"))
        if sizes and all((folder / name).stat().st_size == size for name, size in sizes.items()):
            return folder
    return None


def get(spec: str) -> Path:
    """The folder of this pipeline or network; downloaded and verified if it is not there.

    It contains the configurations and the averaged weights in full precision, as safetensors if
    there are any. Raises only UserError, if it cannot be downloaded or differs from what the hub
    states.
    """
    repo, revision = _parse(spec)
    folder = _folder(repo, revision)
    if found := cached(spec):
        return found
    if fetch.offline():
        raise UserError(
            f"hub:{spec} is not here and BDIA_EXP_OFFLINE is set: run the same command where there "
            f"is a network, or copy {folder.parents[1]} from there"
        )
    library = require("huggingface_hub")
    try:
        with fetch.locked(folder.parents[1]):
            if not cached(spec):  # another process may have downloaded it meanwhile
                _fetch(library, repo, revision, folder)
        return folder
    except UserError:
        raise
    except Exception as error:  # of the library, its HTTP client or the disk
        raise UserError(_told(error, repo, revision, folder)) from None


def _parse(spec: str) -> tuple[str, str]:
    if found := SPEC.fullmatch(spec):
        return found[1], found[2]
    repo, _, revision = spec.partition("@")
    missing = f"{revision!r} is no commit" if revision else "it names no commit"
    raise UserError(
        f"hub:{spec} can change, because {missing}: write hub:ORG/NAME@REVISION with the 40 "
        f"hexadecimal digits of a commit from https://huggingface.co/{repo}/commits/main"
    )


def _folder(repo: str, revision: str) -> Path:
    """Where the library puts a snapshot, according to its documentation."""
    return fetch.cache() / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / revision


def _record(folder: Path) -> Path:
    """Our file beside a snapshot that is complete and verified: {file: size in bytes}."""
    return folder.parents[1] / f"{folder.name}.verified.json"


def _fetch(library: Any, repo: str, revision: str, folder: Path) -> None:
    info = library.HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or ()}
    wanted = _wanted(files)
    networks = {name for one in (SAFE[0], PICKLED[0]) for name in (one, index_of(one))}
    if not {INDEX, *networks} & set(wanted):
        raise UserError(
            f"hub:{repo}@{revision} is neither a pipeline nor a network in diffusers' layout: it "
            f"has no {INDEX} and no {SAFE[0]}; give another model"
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
                f"the downloaded {name} of {repo} has {fault}, and was not kept: "
                "try again later, or from another HF_ENDPOINT"
            )
    sizes = {name: (folder / name).stat().st_size for name in wanted}
    write_text(_record(folder), json.dumps(sizes, indent=1))


def _wanted(names: Iterable[str]) -> list[str]:
    """The files to download: configurations and weights, without variants and single files."""
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
        weights = _weights({n.removeprefix(prefix) for n in names if n.startswith(prefix)})
        texts = folder in ("scheduler", "tokenizer") and re.fullmatch(r"[\w-]+\.(json|txt)", file)
        if file == "config.json" or texts or file in weights:
            kept.append(name)
    return kept


def _weights(files: set[str]) -> set[str]:
    """The files of weights of a network's folder: safetensors if there are any, one if possible."""
    for kind in (SAFE, PICKLED):
        if single := files.intersection(kind):
            return single
        for name in files.intersection(map(index_of, kind)):
            stem, suffix = name.removesuffix(".index.json").rsplit(".", 1)
            part = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}", re.ASCII)
            return {name, *filter(part.fullmatch, files)}
    return set()


def _fault(path: Path, published: Any) -> str:
    """How the file differs from what the hub states; empty if it does not."""
    if (size := path.stat().st_size) != published.size:
        return f"{size} bytes, not {published.size}"
    if published.lfs:
        wanted, found = published.lfs["sha256"], digest(path)
        return "" if found == wanted else f"sha256 {found}, not {wanted}"
    data = path.read_bytes()  # a small file: Git's own hash of it
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    wanted = published.blob_id
    return "" if found == wanted else f"Git's hash {found}, not {wanted}"


def _remove(path: Path) -> None:
    """Deletes a file of a snapshot, and every link that leads to it."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _told(error: Exception, repo: str, revision: str, folder: Path) -> str:
    """One sentence about an exception of the library."""
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
            "BDIA_EXP_CACHE to a folder on another disk, and run the same command again"
        )
    if isinstance(error, OSError) and error.filename:
        why = f"{error.filename} cannot be read or written ({error.strerror})"
        return f"{why}: set BDIA_EXP_CACHE to another folder"
    why = brief(str(error.__cause__ or error).strip().partition("\n")[0]) or type(error).__name__
    return (
        f"{repo} cannot be fetched from the hub ({why}): look at the network, the proxy's settings "
        f"and HF_ENDPOINT, or copy {folder.parents[1]} from another machine"
    )
