"""Signals that ask a command to stop, and who tells the user why it ended.

SIGINT, SIGTERM and SIGUSR1 raise `Stopped` in the main thread, and the command ends with the exit
status 128 + the signal's number. It ends at once after a second signal, and after GRACE seconds if
the main thread does not react, for example because it waits for another process.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

TOLD = "BDIA_EXP_TOLD"
"""The environment variable with the path of a file; the first process with an error creates it."""
LAUNCHER = "BDIA_EXP_LAUNCHER"
"""The environment variable with the number of the process that started the others."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE = 10.0
"""Seconds that the main thread has to end after the first signal. Launchers wait for 30."""
TWICE = 1.0
"""Seconds after which another signal is a second one. A terminal and a launcher both send one."""
PR_SET_PDEATHSIG = 1
"""Linux's option of prctl: the signal to this process when its parent ends."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def listen() -> None:
    """Lets the signals stop this process. Ignored signals, as under nohup, stay ignored."""
    if threading.current_thread() is not threading.main_thread() or _Listener.started:
        return
    _Listener.started = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _Listener.stop)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()


class _Listener:
    started = False
    stopping = False

    @classmethod
    def stop(cls, number: int, frame: FrameType | None) -> None:
        """Raises Stopped at the first signal."""
        if not cls.stopping:
            cls.stopping = True
            raise Stopped(number)


def _watch(reading: int) -> None:
    """Ends the process if the main thread does not. The kernel tells this thread of a signal."""
    number, began = os.read(reading, 1)[0], time.monotonic()
    while (left := began + GRACE - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            os.read(reading, 1)
            if time.monotonic() - began > TWICE:
                break
    tell(number)
    os._exit(128 + number)


def tell(number: int) -> None:
    """Says that a signal stopped the command. A launcher says it for its processes."""
    if LAUNCHER not in os.environ:
        name = signal.Signals(number).name
        print(f"\nstopped by {name}; run the same command again to continue", file=sys.stderr)


def first_to_tell() -> bool:
    """Whether this process is the first one of a launcher that has an error to print."""
    if TOLD not in os.environ:
        return True
    try:
        Path(os.environ[TOLD]).touch(exist_ok=False)
    except OSError:
        return False
    return True


def end_with_launcher() -> None:
    """Ends this process when the launcher that started it does not exist any more."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    prctl: Callable | None = getattr(ctypes.CDLL(None), "prctl", None)
    if not prctl or prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    if os.getppid() != launcher:  # it ended before this line
        os._exit(128 + signal.SIGTERM)


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(128 + signal.SIGTERM)
