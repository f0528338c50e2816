"""Locks on folders. A process that dies holds no lock.

One process at a time works on a whole run. Several can work on parts of one run, each on another.
"""

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from bdia_exp.errors import UserError

NAME = ".lock"
"""The file that is locked. It names the process that holds the lock. A part locks `.lock-PART`
in the same way, and shares `.lock` with the other parts."""
PATIENCE = 0.5
"""Seconds before a folder in use is refused: another process may be looking who uses it."""
_held: dict[Path, int] = {}
_shared: set[Path] = set()
"""Those of the held files that other processes may hold too."""
# POSIX forgets a process's lock as soon as the process closes any descriptor of the file. So a
# process opens the file once, and locks it once.


JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""Where batch systems say which job a process belongs to."""


def this_process() -> str:
    """This process, as it is named to others: process 12 on node3, job 4567."""
    job = next((found for name in JOBS if (found := os.environ.get(name))), None)
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")


def lock(folder: Path, part: str | None = None) -> None:
    """Takes the lock of a folder for this process, or that of one part of its run.

    Does nothing if the process has it already. Raises UserError if another process has it, or if
    the folder cannot be written. A file system without locks, such as some network file systems,
    gives no protection.
    """
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if part is None:
            _take(folder / NAME)
            return
        _take(folder / NAME, shared=True)
        _take(folder / f"{NAME}-{part}")
    except _InUseError as error:
        what = folder if error.file.name == NAME else f"{folder}: this part"
        unlock(folder)
        raise UserError(
            f"{what} is in use by another process ({error.holder}): wait until it has finished, "
            "or choose another out="
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): choose another out="
        ) from None


class _InUseError(Exception):
    def __init__(self, file: Path, holder: str):
        self.file, self.holder = file, holder


def _take(file: Path, *, shared: bool = False) -> None:
    """Locks a file. Raises _InUseError if another process has locked it, or OSError."""
    if file in _held:
        return
    number = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    if not _locked(number, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, PATIENCE):
        holder = _text(number)
        os.close(number)
        raise _InUseError(file, holder or "on a part of this run")
    if not _is_there(file, number):  # removed by `unlock` before it was locked here
        os.close(number)
        return _take(file, shared=shared)
    os.truncate(number, 0)
    if not shared:
        os.write(number, this_process().encode())
    _held[file] = number
    if shared:
        _shared.add(file)


def _locked(number: int, kind: int, patience: float = 0.0) -> bool:
    """Locks an open file, if no other process has locked it or does so only for a moment.

    Also true on a file system that has no locks.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(number, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _text(number: int) -> str:
    return os.pread(number, 200, 0).decode(errors="replace")


def _is_there(file: Path, number: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(number), file.stat())
    return False


def unlock(folder: Path) -> None:
    """Gives back all locks of a folder. Removes their files, but not one that parts share."""
    folder = folder.absolute()
    for file in [file for file in _held if file.parent == folder]:
        if file not in _shared:
            with suppress(OSError):
                file.unlink()
        _shared.discard(file)
        os.close(_held.pop(file))


def holders(folder: Path) -> dict[str, str]:
    """Who works in a folder now: the part ("" for the whole run) → the process, as text."""
    found = {}
    for file in sorted(folder.absolute().glob(f"{NAME}*")):
        part = file.name.removeprefix(NAME).removeprefix("-")
        if file in _shared:
            continue
        if file in _held:
            found[part] = this_process()
            continue
        with suppress(OSError):
            number = os.open(file, os.O_RDWR)
            if not _locked(number, fcntl.LOCK_SH):
                found[part] = _text(number)
            os.close(number)
    return found
