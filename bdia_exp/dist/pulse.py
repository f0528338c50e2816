"""Which processes are alive, and which one the others wait for."""

import atexit
import os
import sys
import threading
import time

import torch.distributed as td

BEAT = 5.0
"""Seconds between two signs of life of a process."""
REMIND = 60.0
"""Seconds between the lines that say which process is waited for."""


class Pulse:
    """Counters of every rank in the store at which the ranks met: signs of life, and meetings.

    A rank that works or is slow gives signs of life, from a thread of its own. One that is stopped
    does not. One that has died is no matter here: its launcher ends the others.
    """

    def __init__(self, rank: int, world: int):
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = td.TCPStore(address, port, is_master=False, wait_for_workers=False)
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = td.PrefixStore(f"bdia_exp/{restart}", store)
        self._rank, self._world, self._meetings = rank, world, 0
        self._since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        atexit.register(self.end)

    def end(self) -> None:
        """Gives no more signs of life. The store must not be left before."""
        self._ended.set()
        self._thread.join(2.0)

    def arrive(self) -> None:
        """This rank begins to wait for the others, at the next meeting."""
        self._meetings += 1
        self._since = time.monotonic()

    def leave(self) -> None:
        """All ranks have come to the meeting."""
        self._since = None

    def _live(self) -> None:
        """Gives signs of life, and says now and then which rank is waited for."""
        told, before = time.monotonic(), [0] * self._world
        while not self._ended.wait(BEAT):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                self._store.set(f"meeting/{self._rank}", str(self._meetings))
                now, since = time.monotonic(), self._since
                if now - told < REMIND:
                    continue
                beats = [self._store.add(f"beat/{rank}", 0) for rank in range(self._world)]
                if since and now - since >= REMIND:
                    for rank in self._absent():
                        alive = beats[rank] > before[rank]
                        print(sentence(rank, (now - since) / 60, alive), file=sys.stderr)
                told, before = now, beats
            except RuntimeError:  # the store has ended
                return

    def _absent(self) -> list[int]:
        """The ranks that are not at this meeting yet; empty if another rank tells of them."""
        keys = [f"meeting/{rank}" for rank in range(self._world)]
        count = [int(self._store.get(key)) if self._store.check([key]) else 0 for key in keys]
        there = [rank for rank, meetings in enumerate(count) if meetings >= self._meetings]
        first = bool(there) and there[0] == self._rank
        return [rank for rank in range(self._world) if rank not in there] if first else []


def sentence(rank: int, minutes: float, is_alive: bool) -> str:
    """What is said of a rank that the others wait for."""
    if is_alive:
        return f"waiting for process {rank} for {minutes:.0f} min: it is alive"
    return (
        f"process {rank} has not answered for {minutes:.0f} min: it is stopped, or its machine "
        "cannot be reached"
    )
