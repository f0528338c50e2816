"""Locks on folders: one process at a time writes to a run. A process that dies holds no lock."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from bdia_exp.errors import UserError

NAME = ".lock"
"""The file that is locked. It names the process that holds the lock."""
_held: dict[Path, int] = {}
# POSIX forgets a process's lock as soon as the process closes any descriptor of the file. So a
# process opens the file once, and locks it once.


def lock(folder: Path) -> None:
    """Takes the lock of a folder for this process; does nothing if it has it already.

    Raises UserError if another process has it, or if the folder cannot be written. A file system
    without locks, such as some network file systems, gives no protection.
    """
    folder = folder.absolute()
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): choose another out="
        ) from None
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(number, 200).decode(errors="replace")
        os.close(number)
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # no locks on this file system
            return
        raise UserError(
            f"{folder} is in use by another process ({holder}): wait until it has finished, or "
            "choose another out="
        ) from None
    if not _is_there(folder, number):  # removed by `unlock` before it was locked here
        os.close(number)
        return lock(folder)
    os.truncate(number, 0)
    os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held[folder] = number


def _is_there(folder: Path, number: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(number), os.stat(folder / NAME))
    return False


def unlock(folder: Path) -> None:
    """Gives the lock back, and removes its file."""
    folder = folder.absolute()
    if (number := _held.pop(folder, None)) is not None:
        with suppress(OSError):
            (folder / NAME).unlink()
        os.close(number)
