"""How a network is run: device, dtype, memory layout, compilation, CUDA graphs and TF32."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bdia_exp import batching
from bdia_exp.console import one_of
from bdia_exp.errors import UserError, brief
from bdia_exp.models import parameter_count
from bdia_exp.models.graphs import Graphed, copied

Network = TypeVar("Network", bound=nn.Module)

DTYPES = ("auto", "float32", "float16", "bfloat16")
LARGE = 10_000_000
"""Networks of more parameters get batching.ROWS rows a call on a CPU."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names of what mallopt sets."""
MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""The values of `compile` except off, and torch's names. `graphs` alone decides on CUDA graphs."""


@dataclass(frozen=True)
class Running:
    """How a network is run. The defaults are those of every earlier version.

    device: "cpu", "cuda:0", …; on "meta" networks have no weights, and nothing is compiled.
    dtype: that of the network's body; "auto" is float32, or what the checkpoint asks for.
    compile: "off", "default" or "max-autotune" (which tries several kernels and takes the fastest).
    graphs: "auto" replays an evaluation as a CUDA graph; on other devices it has no effect.
    tf32: whether CUDA may round the factors of float32 products to 11 bits.

    Raises UserError for an unknown value.
    """

    device: str = "cpu"
    dtype: str = "auto"
    compile: str = "off"
    graphs: str = "off"
    tf32: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        one_of("compile", self.compile, ["off", *MODES])
        one_of("graphs", self.graphs, ["off", "auto"])

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def body(self) -> torch.dtype:
        """The dtype of a network's body; "auto" is float32."""
        return torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)

    @property
    def compiles(self) -> bool:
        return self.compile != "off" and self.device != "meta"

    @property
    def uses_graphs(self) -> bool:
        return self.graphs == "auto" and self.on_cuda

    def ready(
        self, net: Network, dtype: torch.dtype | None = None, *, channels_last: bool = True
    ) -> Network:
        """The network itself, on the device and for evaluation only: no dropout, no gradients.

        Its parameters are cast to `dtype` if it is given. Channels last is the faster layout for
        convolutions, on CPUs too (bench/layout.py). For the whole process, `tf32` is set on CUDA,
        and freed memory is kept on a CPU.
        """
        if self.on_cuda:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        elif self.device == "cpu":
            keep_freed_memory()
        net = nn.Module.to(net, self.device, dtype)  # diffusers' own `to` warns of an empty list
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        return net.eval().requires_grad_(False)

    def caller(
        self, function: Callable[..., Tensor], *, full: bool = True, graphs: bool = True
    ) -> Callable[..., Tensor]:
        """A function of tensors, such as a network, that is run in this way.

        Its first argument is a batch, with `full` in full rows (`batching`). Where kernels or
        graphs are made for one shape, every batch has this shape, so a smaller last batch makes no
        new ones: a CPU has full rows of batching.ROWS, and elsewhere a batch is padded to the
        largest so far. With `graphs=False` there is no CUDA graph. The result raises UserError if
        the function cannot be compiled.
        """
        graphed = graphs and self.uses_graphs
        fixed = self.compiles or graphed
        large = isinstance(function, nn.Module) and parameter_count(function) > LARGE
        most = batching.ROWS if fixed or large else batching.MOST
        if self.compiles:
            function = _compiled(function, self.compile)
        if graphed:
            function = Graphed(function)
        return _Padded(function, full=full, fixed=fixed, most=most)


def keep_freed_memory() -> None:
    """The C library keeps up to 1 GB of freed memory for the next tensors (glibc's mallopt).

    Otherwise it gives much of it back to the system after every layer, and the system clears every
    page that is asked for again: a tenth of the time of a small network. Other C libraries are left
    as they are.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def number(value: float, device: torch.device) -> Tensor:
    """A number as a float32 tensor [] on a device; CUDA does not wait for it."""
    return torch.full((), value, dtype=torch.float32, device=device)


class _Padded:
    """A function of batches in full rows, and if `fixed` of one shape (`Running.caller`)."""

    def __init__(self, function: Callable[..., Tensor], *, full: bool, fixed: bool, most: int):
        self.function, self.full, self.fixed, self.most = function, full, fixed, most
        self.largest = 0

    def __call__(self, x: Tensor, *others: Tensor | None) -> Tensor:
        if not (self.full or self.fixed):
            return self.function(x, *others)
        rows = batching.ROWS if self.full else 1
        if self.fixed and not (self.full and x.device.type == "cpu"):
            self.largest = rows = max(self.largest, len(x) + -len(x) % rows)
        return batching.in_full_rows(self.function, x, *others, rows=rows, most=self.most)


def _compiled(function: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    """torch.compile's version of a function for fixed shapes; it is compiled at its first call.

    It gives no gradients. A version is for tensors of inference mode, or for others, and for one
    memory layout; so all inputs are copied to one kind.
    """
    compiled = torch.compile(function, mode=MODES[mode], dynamic=False)

    def call(*inputs: Tensor | None) -> Tensor:
        try:
            with torch.inference_mode():
                return compiled(*map(copied, inputs))
        except RuntimeError as error:
            if not _is_of_compiler(error):
                raise
            why = brief(str(error).strip().partition("\n")[0])
            raise UserError(
                f"compile={mode}: the network cannot be compiled here ({why}); PyTorch needs a C++ "
                "compiler such as g++ (its path in CXX=) and, on a GPU, Triton; or leave compile= "
                "out"
            ) from None

    return call


def _is_of_compiler(error: RuntimeError) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


@contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """In the block, if wanted, equal inputs give equal bits: the same kernels, in one order."""
    kernels, measured = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = measured
        torch.use_deterministic_algorithms(kernels, warn_only=warn_only)
