"""Work in several processes. No other module imports `torch.distributed`.

Every function also works in a single process, as a world with one rank. Under `torchrun` the
environment gives the rank; the backend is NCCL on CUDA and gloo on the CPU.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor

from bdia_exp.errors import UserError, nearest

T = TypeVar("T")

TOLD = "BDIA_EXP_TOLD"
"""The environment variable with the path of a file; the first process with an error creates it."""
LAUNCHER = "BDIA_EXP_LAUNCHER"
"""The environment variable with the number of the process that started the others."""
LONGEST_WAIT = timedelta(days=1)
"""How long a process waits for a slower one. Launchers notice processes that died at once."""
REMIND = 60.0
"""Seconds between the lines that say that a process waits."""


def in_torchrun() -> bool:
    """Whether a launcher started this process as one of several."""
    return _whole("WORLD_SIZE", "1") > 1


def _whole(name: str, default: str) -> int:
    """The whole number in an environment variable, as a launcher sets it."""
    text = os.environ.get(name) or default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"the environment variable {name}={text[:40]} must be a whole number")
    return int(text)


def launch(processes: int, words: Sequence[str]) -> int:
    """Runs `python -m bdia_exp WORDS` in several processes on this machine; the exit status.

    It works like `torchrun --standalone`, without its report of a failure. The first process with
    a user's error prints it (`first_to_tell`), and the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.WARNING)  # the processes print the reasons of failures themselves
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ[TOLD] = str(Path(folder) / "told")
        os.environ[LAUNCHER] = str(os.getpid())
        try:
            elastic_launch(config, sys.executable)("-m", "bdia_exp", *words)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                print(f"\nError: process {rank} was killed by {name}", file=sys.stderr)
                return 128 - failure.exitcode
            return failure.exitcode
        except SignalException as error:
            return 128 + error.sigval
    return 0


def first_to_tell() -> bool:
    """Whether this process is the first one of `launch` that has an error to print."""
    if TOLD not in os.environ:
        return True
    try:
        Path(os.environ[TOLD]).touch(exist_ok=False)
    except OSError:
        return False
    return True


def start(device: str = "cpu") -> None:
    """Joins the process group that `torchrun` describes; does nothing in a single process."""
    if not in_torchrun() or td.is_initialized():
        return
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(local_rank())
    try:
        with _together():
            td.init_process_group("nccl" if on_cuda else "gloo", timeout=LONGEST_WAIT)
    except ValueError as error:
        raise UserError(f"the processes cannot meet ({error}): use torchrun or -p") from None


def _end_with(launcher: int) -> None:
    """Ends this process when its launcher does not exist any more: somebody killed it."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(128 + signal.SIGTERM)


@contextmanager
def _together() -> Iterator[None]:
    """Around work that needs every process. Rank 0 says every minute that it waits.

    Raises UserError if another process has ended or does not answer.
    """
    done = threading.Event()

    def remind() -> None:
        began = time.monotonic()
        while not done.wait(REMIND):
            minutes = (time.monotonic() - began) / 60
            print(f"waiting for the other processes for {minutes:.0f} min", file=sys.stderr)

    if int(os.environ.get("RANK", "0")) == 0:
        threading.Thread(target=remind, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"another process has ended or does not answer ({what})") from error
    finally:
        done.set()


def stop() -> None:
    """Leaves the process group, if there is one."""
    if td.is_initialized():
        td.destroy_process_group()


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Work of this process that the others take no part in: here it is the only rank of a world."""
    global _alone
    _alone, before = True, _alone
    try:
        yield
    finally:
        _alone = before


def _joined() -> bool:
    """Whether this process works with others."""
    return td.is_initialized() and not _alone


def rank() -> int:
    return td.get_rank() if _joined() else 0


def world() -> int:
    return td.get_world_size() if _joined() else 1


def local_rank() -> int:
    """This process's number on its own machine: the index of its GPU."""
    return _whole("LOCAL_RANK", "0")


def barrier() -> None:
    """Waits until every rank has reached this point."""
    if _joined():
        with _together():
            td.barrier()


def broadcast(value):
    """Rank 0's `value` (any picklable object), on every rank."""
    if not _joined():
        return value
    box = [value]
    with _together():
        td.broadcast_object_list(box, src=0)
    return box[0]


def by_rank_0(what: Callable[[], T]) -> T:
    """What a function returns, called by rank 0 `alone`, on every rank; so is its UserError."""
    trouble, found = None, None
    if rank() == 0:
        try:
            with alone():
                found = what()
        except UserError as error:
            trouble = str(error)
    trouble, found = broadcast((trouble, found))
    if trouble is not None:
        raise UserError(trouble)
    return cast(T, found)


def gather(value) -> list:
    """Every rank's `value`, in rank order, on every rank."""
    if not _joined():
        return [value]
    out: list = [None] * world()
    with _together():
        td.all_gather_object(out, value)
    return out


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, on every rank."""
    found = tensor.clone()
    if _joined():
        with _together():
            td.all_reduce(found)
    return found


def average_(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor, in place, by its mean over the ranks, with one message in total."""
    if not _joined():
        return
    tensors = list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    with _together():
        td.all_reduce(flat)
    flat /= world()
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view_as(t))


def device(name: str) -> str:
    """The device of this process; `auto` means a GPU if there is one, else the CPU.

    Raises UserError for an unknown name and for a GPU that does not exist.
    """
    kind = name.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name!r} is unknown{nearest(name, ['auto', 'cpu', 'cuda'])}")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"device={name}: PyTorch sees no GPU here; use device=cpu")
    number = name.partition(":")[2] if ":" in name else str(local_rank())
    if not number.isdigit():
        raise UserError(f"device={name}: give the number of a GPU, such as cuda:0")
    index = int(number)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device=cuda:{index} does not exist: this machine has {torch.cuda.device_count()} "
            "GPUs; start at most one process per GPU"
        )
    return f"cuda:{index}"


def device_name(device: str) -> str:
    """The description of a device in a record."""
    if device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)
