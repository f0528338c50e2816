"""Estimates of the operations and the memory that a model needs, without its weights.

Networks are run on torch's meta device, where tensors have a size but no contents: no checkpoint
is needed, and the largest network takes seconds.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bdia_exp.batching import ROWS
from bdia_exp.errors import UserError
from bdia_exp.models import Condition, Model, Text, of_classes, parameter_count
from bdia_exp.samplers.core import Level


@dataclass(frozen=True)
class Work:
    """The cost of one call."""

    flops: float
    """Floating-point operations of its convolutions and matrix products; an addition and a
    multiplication count as two."""
    peak: int
    """The largest number of bytes in tensors made by the call, at one time; without its arguments
    and without the memory inside kernels."""


def measure(function: Callable[[], object]) -> Work:
    """Calls a function of tensors on the meta device; returns the cost of the same real call.

    Attention is counted as a fused kernel: its operations are those of two matrix products, and
    the matrix of attention weights is never in memory.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    alive, attention = _Alive(), _FusedAttention()
    counter = FlopCounterMode(display=False)
    # Under no_grad, the modes see the kernels that would run. In inference mode they would see
    # composite operations, which the counter decomposes into other kernels.
    with torch.no_grad(), attention, counter, alive:
        function()
    return Work(float(counter.get_total_flops() + attention.flops), alive.peak)


class _Alive(TorchDispatchMode):
    """Counts the storages of the tensors that operations make, from their creation to their
    release. Views share a storage; in-place operations make none."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)  # one that was not made here is an argument
        out = func(*args, **kwargs)
        for storage in _storages(out):
            self._follow(storage, storage.nbytes())
        return out

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)  # torch keeps one such object as long as the storage lives
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self._now -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _FusedAttention(TorchFunctionMode):
    """Attention that allocates only its result. On the meta device torch would also allocate
    the weights of every query for every key."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *_, **__) -> Tensor:
        width, keys = value.shape[-1], key.shape[-2]
        self.flops += 2 * query[..., 0].numel() * keys * (query.shape[-1] + width)
        if width != query.shape[-1]:
            return query.new_empty(*query.shape[:-1], width)
        return torch.empty_like(query)  # in the queries' memory layout, as the kernels do


@dataclass(frozen=True)
class Weights:
    """The weights of one network."""

    parameters: int
    size: int
    """Bytes of parameters and buffers, each in its own dtype."""

    @property
    def millions(self) -> str:
        millions = self.parameters / 1e6
        return f"{millions:,.0f}" if millions >= 10 else f"{millions:.1f}"


@dataclass(frozen=True)
class Cost:
    """The cost of a model in one process, without the sampler's states and without scoring."""

    weights: Mapping[str, Weights]
    """By the networks' names."""
    flops: float
    """Operations of one evaluation for one image."""
    working_set: int
    """Bytes at the peak of one evaluation of a batch, without the weights."""
    decoding: Work
    """The cost of decoding one image's state."""
    image_size: int
    """Bytes of one image: one per pixel and channel."""

    @property
    def weights_size(self) -> int:
        """Bytes of all networks' weights."""
        return sum(weights.size for weights in self.weights.values())

    def memory(self, batch: int) -> str:
        """The memory of the weights and of batches of `batch` images, as text."""
        parameters = ", ".join(f"{name} {w.millions} M" for name, w in self.weights.items())
        text = f"weights {in_bytes(self.weights_size)} (parameters: {parameters}), "
        text += f"working set at batch={batch} about {in_bytes(self.working_set)}"
        if self.decoding.flops:
            text += f" (sampling) and {in_bytes(self.decoding.peak)} (decoding beside it)"
        return text


def cost_of(
    model: Callable[..., Model], *, batch: int, dtype: str = "auto", guidance: float | None = None
) -> Cost | None:
    """The cost of a model on batches of `batch` images; `model` is its constructor.

    A guidance other than 1 adds the estimate without the condition; None does so for models of
    texts. Returns None if the network cannot be built because its checkpoint is missing, or cannot
    be run without weights.
    """
    try:
        return _cost(model(device="meta", dtype=dtype), batch, guidance)
    except (UserError, RuntimeError):  # RuntimeError: a meta tensor's values were needed
        return None


def _cost(model: Model, batch: int, guidance: float | None) -> Cost:
    def evaluation(rows: int) -> Work:
        denoiser, z = model.denoiser(_condition(model, rows, guidance)), _states(model, rows)
        return measure(lambda: denoiser(z, Level(1.0, 1.0, 1.0)))

    whole = evaluation(batch)
    # Small networks fill their batches up to ROWS; the published tables' batches are full.
    flops = whole.flops / batch if model.takes_text else evaluation(ROWS).flops / ROWS
    state = _states(model, 1)
    return Cost(
        weights={name: _weights(net) for name, net in model.networks.items()},
        flops=flops,
        working_set=whole.peak,
        decoding=measure(lambda: model.decode(state)),
        image_size=model.decode(state).numel(),
    )


def _condition(model: Model, rows: int, guidance: float | None) -> Condition:
    """The condition of a batch, without content."""
    if model.takes_text:
        control = None
        if "ControlNet" in model.networks:
            control = torch.empty(1, *model.image_shape, device="meta")
        return Text([""] * rows, 2.0 if guidance is None else guidance, control)
    if not model.takes_guidance:
        return None
    return of_classes(torch.zeros(rows, dtype=torch.int64, device="meta"), guidance)


def _states(model: Model, count: int) -> Tensor:
    return torch.empty(count, *model.shape, device="meta", dtype=torch.float64)


def _weights(net: nn.Module) -> Weights:
    tensors = [*net.parameters(), *net.buffers()]
    return Weights(parameter_count(net), sum(t.numel() * t.element_size() for t in tensors))


def in_bytes(size: float) -> str:
    """A number of bytes as text, in MB or GB (powers of ten)."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
