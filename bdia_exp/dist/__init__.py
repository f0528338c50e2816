"""Work in several processes. No other module imports `torch.distributed`.

Every function also works in a single process, as a world with one rank. Under `torchrun` the
environment gives the rank; the backend is NCCL on CUDA and gloo on the CPU.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor

from bdia_exp.dist.pulse import Pulse
from bdia_exp.errors import UserError, nearest
from bdia_exp.stopping import LAUNCHER, end_with_launcher

T = TypeVar("T")

TIMEOUT = "BDIA_EXP_TIMEOUT"
"""The environment variable with the seconds that a process waits for a slower one; else a day."""
SPOKEN_FOR = 5.0
"""Seconds in which a launcher ends the processes after one has died; it says which one."""
_pulse: Pulse | None = None


def in_torchrun() -> bool:
    """Whether a launcher started this process as one of several."""
    return _whole("WORLD_SIZE", "1") > 1


def _whole(name: str, default: str) -> int:
    """The whole number in an environment variable, as a launcher sets it."""
    text = os.environ.get(name) or default
    if not _is_whole(text):
        raise UserError(f"the environment variable {name}={text[:40]} must be a whole number")
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def start(device: str = "cpu") -> None:
    """Joins the process group that `torchrun` describes; does nothing in a single process."""
    global _pulse
    if not in_torchrun() or td.is_initialized():
        return
    end_with_launcher()
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(local_rank())
    longest = timedelta(seconds=max(_whole(TIMEOUT, "86400"), 1))
    try:
        with _together():
            td.init_process_group("nccl" if on_cuda else "gloo", timeout=longest)
    except ValueError as error:
        raise UserError(f"the processes cannot meet ({error}): use torchrun or -p") from None
    with suppress(RuntimeError, KeyError):  # without a store nobody tells who is late
        _pulse = Pulse(rank(), world())


@contextmanager
def _together() -> Iterator[None]:
    """Around work that needs every process. The first one says every minute for whom it waits.

    Raises UserError if another process has ended or does not answer.
    """
    if _pulse:
        _pulse.arrive()
    try:
        yield
    except RuntimeError as error:
        if LAUNCHER in os.environ:
            time.sleep(SPOKEN_FOR)
        what = str(error).partition("\n")[0]
        raise UserError(
            f"another process has ended or does not answer ({what[:200]}); {TIMEOUT}=SECONDS "
            "waits longer"
        ) from error
    finally:
        if _pulse:
            _pulse.leave()


def stop() -> None:
    """Leaves the process group, if there is one."""
    global _pulse
    if _pulse:
        _pulse.end()
        _pulse = None
    if td.is_initialized():
        td.destroy_process_group()


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Work of this process that the others wait for: here it is the only rank of a world.

    It has the CPU threads of all processes of its machine.
    """
    global _alone
    before, threads = _alone, torch.get_num_threads()
    if _joined():
        torch.set_num_threads(threads * _whole("LOCAL_WORLD_SIZE", "1"))
    _alone = True
    try:
        yield
    finally:
        _alone = before
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


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

    Raises UserError for an unknown name, for a GPU that does not exist, and for the number of a GPU
    where each of several processes has its own.
    """
    kind = name.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name!r} is unknown{nearest(name, ['auto', 'cpu', 'cuda'])}")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return "cpu"
    index = _index(name)
    if not torch.cuda.is_available():
        raise UserError(f"device={name}: PyTorch sees no GPU here; use device=cpu")
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device=cuda:{index} does not exist: this machine has {torch.cuda.device_count()} "
            "GPUs; start at most one process per GPU"
        )
    return f"cuda:{index}"


def _index(name: str) -> int:
    """The number of the GPU that a name means; without a number, this process's own GPU."""
    _, given, number = name.partition(":")
    if not given:
        return local_rank()
    if not _is_whole(number):
        raise UserError(f"device={name}: give the number of a GPU, such as cuda:0")
    if in_torchrun():
        raise UserError(f"device={name} is for one process: give device=cuda, one GPU for each")
    return int(number)


def device_name_of(name: str) -> str:
    """The description of the device that a name means, also where there is no GPU."""
    if name.split(":")[0] == "cuda" and not torch.cuda.is_available():
        return "a GPU that is not here"
    return device_name(device(name))


def device_name(device: str) -> str:
    """The description of a device in a record."""
    if device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)
