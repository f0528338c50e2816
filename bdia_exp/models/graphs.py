"""CUDA graphs: the kernels of a call, recorded once and started again with one request."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Inputs = Sequence[Tensor | None]
WARM_UP = 3
"""Calls before the recording: libraries choose their kernels and reserve their memory in them."""


def copied(x: Tensor | None) -> Tensor | None:
    """A copy in the usual memory layout; None of None."""
    return None if x is None else x.clone(memory_format=torch.contiguous_format)


class Graphed:
    """A function of CUDA tensors as a CUDA graph, one for each set of shapes and dtypes.

    The function must start the same kernels in every call. It may not read a value back to the CPU,
    nor take a number that changes as anything but a tensor.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self._recorded: dict[tuple, _Recorded] = {}

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        key = tuple(None if x is None else (tuple(x.shape), x.dtype) for x in inputs)
        if key not in self._recorded:
            self._recorded[key] = _Recorded(self.function, inputs)
        return self._recorded[key](*inputs)


class _Recorded:
    """One graph with the tensors that it reads and the tensor that it writes."""

    # The buffers are written in and out of inference mode, so they are ordinary tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, function: Callable[..., Tensor], inputs: Inputs):
        self.buffers = [*map(copied, inputs)]
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self.buffers)
        main.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Another thread may decode images while this one records.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = function(*self.buffers)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        for buffer, x in zip(self.buffers, inputs, strict=True):
            if buffer is not None and x is not None:
                buffer.copy_(x)
        self.graph.replay()
        return self.result.clone()
