"""Starts a command in several processes, on one machine or on several."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bdia_exp.stopping import LAUNCHER, TOLD, Stopped, first_to_tell, tell


def launch(processes: int, words: Sequence[str], nodes: int = 1, meet: str | None = None) -> int:
    """Runs `python -m bdia_exp WORDS` in several processes on this machine; the exit status.

    It works like `torchrun --standalone`, without its report of a failure: one sentence says which
    process failed, and why. The others are then stopped. A signal goes on to all processes.

    With several `nodes` the same command runs on each of them, and they meet at HOST:PORT, as with
    `torchrun --nnodes --rdzv-endpoint`.
    """
    logging.disable(logging.WARNING)  # the processes print the reasons of failures themselves
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id=meet or str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint=meet or "localhost:0",
        max_restarts=0,
    )
    signal.signal(signal.SIGUSR1, _pass_on)  # of the others torch does it
    with tempfile.TemporaryDirectory() as folder:
        os.environ[TOLD] = str(Path(folder) / "told")
        os.environ[LAUNCHER] = str(os.getpid())
        try:
            elastic_launch(config, sys.executable)("-m", "bdia_exp", *words)
        except ChildFailedError as error:
            return _failed(error)
        except RendezvousError:
            print(
                f"\nError: the {nodes} machines do not meet at {meet}, or one of them has ended: "
                "see its own messages, and run the same command again",
                file=sys.stderr,
            )
            return 1
        except (SignalException, Stopped) as error:
            number = error.sigval if isinstance(error, SignalException) else error.number
            del os.environ[LAUNCHER]
            tell(number)
            return 128 + number
    return 0


def _pass_on(number: int, frame: FrameType | None) -> NoReturn:
    raise SignalException("stopped", signal.Signals(number))


def _failed(error: ChildFailedError) -> int:
    """Says which process failed first, unless it has said why itself; the exit status.

    A process that was killed comes first: the others fail because it does not answer. Those that
    the launcher stopped come last.
    """

    def order(rank: int) -> tuple[int, int]:
        one = error.failures[rank]
        stopped = one.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        return 2 if stopped else int(one.exitcode > 0), one.timestamp

    rank = min(error.failures, key=order)
    code = error.failures[rank].exitcode
    number = -code if code < 0 else code - 128
    names = {one.value: one.name for one in signal.Signals}
    killed = number in names
    if killed:
        how = f"was killed by {names[number]}"
    else:
        how = f"failed (exit status {code}); its message is above"
    if first_to_tell() or killed:
        print(f"\nError: process {rank} {how}; run the same command again", file=sys.stderr)
    return 128 + number if killed else code
