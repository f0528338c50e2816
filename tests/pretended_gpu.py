"""A pretended GPU, for machines without one.

Its tensors have a shape, a dtype and the device "cuda:0", but no numbers (PyTorch's FakeTensor). An
operation on tensors of two devices is refused there, as on a real GPU.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bdia_exp import dist
from bdia_exp.jobs import sampling

READS = {Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.numpy}
READS |= {Tensor.__bool__, Tensor.__float__, Tensor.__int__}
"""Functions that bring numbers to the CPU, which has to wait for them."""


class PretendedGPU(TorchFunctionMode):
    """Calls that concern the GPU get no numbers, and all others are made as usual.

    Where the program reads numbers back, it gets ones and true; of `any`, false. `reads` counts how
    often it does this, and `copies` how often it copies a tensor to the GPU.
    """

    def __init__(self):
        super().__init__()
        self.tensors = FakeTensorMode(allow_non_fake_inputs=True)
        self.reads = self.copies = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if not any(map(_concerns_it, given)):
            return function(*args, **kwargs)
        if function in READS or (function is Tensor.to and "cpu" in map(str, given[1:])):
            self.reads += 1
            return function(_numbers(args[0]), *args[1:], **kwargs)
        if function is torch.equal:
            self.reads += 1
            return True
        self.copies += function is Tensor.to and not isinstance(args[0], FakeTensor)
        with self.tensors:
            found = function(*args, **kwargs)
        if function in (Tensor.any, torch.any):
            found.is_any = True
        return found


def _concerns_it(x: object) -> bool:
    named = isinstance(x, str | torch.device) and str(x).startswith("cuda")
    return named or isinstance(x, FakeTensor)


def _numbers(x: Tensor) -> Tensor:
    return torch.full(x.shape, not hasattr(x, "is_any"), dtype=x.dtype)


def _moved(net: nn.Module, device=None, dtype=None, memory_format=None) -> nn.Module:
    """`nn.Module.to`, which cannot exchange pretended tensors for others."""
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            for key, old in tensors.items():
                if old is not None:
                    kind = dtype if old.is_floating_point() else None
                    new = old.detach().to(device or old.device, kind)
                    held = isinstance(old, nn.Parameter)
                    tensors[key] = nn.Parameter(new, requires_grad=False) if held else new
    return net


class _AtOnce(nullcontext):
    """An executor without a thread: another thread would not know of the pretended GPU."""

    def submit(self, function, *args) -> Future:
        done: Future = Future()
        done.set_result(function(*args))
        return done


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[PretendedGPU]:
    """Every command can be run with device=cuda."""
    inference = torch.inference_mode  # its tensors cannot become pretended ones
    patch.setattr(torch, "inference_mode", lambda mode=True: inference(False))
    patch.setattr(nn.Module, "to", _moved)
    patch.setattr(torch.cuda, "set_device", lambda device: None)
    patch.setattr(dist, "device", lambda name: "cuda:0")
    patch.setattr(dist, "device_name", lambda device: "a pretended GPU")
    patch.setattr(sampling, "ThreadPoolExecutor", lambda *args: _AtOnce(_AtOnce()))
    with torch.no_grad(), PretendedGPU() as gpu:
        yield gpu
