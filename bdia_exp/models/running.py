"""How a network is run: its device, the dtype of its body, its memory layout."""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def dtype_of(name: str) -> torch.dtype:
    """The dtype with this name, such as bfloat16; "auto" is float32."""
    return torch.float32 if name == "auto" else getattr(torch, name)


def ready(
    net: Network, device: str, dtype: torch.dtype | None = None, *, channels_last: bool = True
) -> Network:
    """The network itself, on the device and for evaluation only: no dropout, no gradients.

    Its parameters are cast to `dtype` if it is given. Channels last is the faster layout for
    convolutions, on CPUs too (bench/layout.py).
    """
    net = nn.Module.to(net, device, dtype)  # diffusers' own `to` warns of a list that is empty
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    return net.eval().requires_grad_(False)
