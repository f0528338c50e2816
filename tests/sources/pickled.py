"""Pickles of the structure of EDM's published files, and files that are damaged on purpose."""

import contextlib
import pickle
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bdia_exp.errors import UserError
from bdia_exp.models.edm import EDMPrecond
from bdia_exp.sources.checkpoints import read

SONG = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=3,
    model_type="SongUNet",
    model_channels=8,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    augment_dim=9,
)
ADM = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=3,
    use_fp16=True,
    model_type="DhariwalUNet",
    model_channels=64,
    channel_mult=[1, 1],
    num_blocks=1,
    attn_resolutions=[4],
)
TINY = dict(SONG, model_channels=4, channel_mult=[1], attn_resolutions=[], augment_dim=0)


class Persistent:
    """Pickles as an object of EDM's `persistent_class` does, source text and all."""

    src = "raise SystemExit('the source inside the file was run')"

    def __init__(self, class_name: str, state: dict):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = dict(type="class", version=6, module_src=self.src, class_name=self.class_name)
        function = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        return function, (dict(meta, state=self.state),)


class Call:
    """Pickles as a call of anything, which is how a hostile pickle is made."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def persistent(module: nn.Module, **attributes) -> object:
    """A module of ours in the form EDM's pickles have; containers of torch stay what they are."""
    state = dict(module.__dict__, **attributes)
    state["_modules"] = {k: m and persistent(m) for k, m in module._modules.items()}
    if type(module).__module__.startswith("torch.nn"):
        plain = type(module)()
        plain.__dict__.update(state)
        return plain
    state |= dict(_init_args=(), skip_scale=np.sqrt(0.5))
    return Persistent(type(module).__name__, state | attributes)


def dump(thing: object, protocol: int = 4) -> bytes:
    """Pickles with EDM's own modules standing in for the time of it."""
    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"]
    fakes = {name: types.ModuleType(name) for name in names}
    for function, name in [(_reconstruct_persistent_obj, names[1]), (EasyDict, names[3])]:
        function.__module__ = name
        setattr(fakes[name], function.__name__, function)
    sys.modules.update(fakes)
    try:
        return pickle.dumps(thing, protocol)
    finally:
        for name in names:
            del sys.modules[name]


def _reconstruct_persistent_obj(meta):
    raise AssertionError("called")


class EasyDict(dict):
    pass


def network(config: dict, seed: int = 0) -> EDMPrecond:
    torch.manual_seed(seed)
    net = EDMPrecond(**config).eval().requires_grad_(False)
    for tensor in net.state_dict().values():
        tensor.normal_(std=0.1)  # layers that start at zero would hide their errors
    return net


def edm(config: dict, protocol: int = 4, **attributes) -> bytes:
    options = EasyDict(dropout=0.0, path=EasyDict(a=(1, 2)))
    top = persistent(network(config), _init_kwargs=config, **attributes)
    loss = Persistent("EDMLoss", dict(P_mean=-1.2))
    whole = dict(ema=top, loss_fn=loss, augment_pipe=None, dataset_kwargs=options)
    return dump(whole, protocol)


def write(folder: Path, data: bytes, name: str = "net.pkl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(folder: Path, data: bytes) -> str:
    """The sentence with which the file is refused; nothing but UserError may come out."""
    with pytest.raises(UserError) as caught:
        read(write(folder, data))
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def flip(data: bytes, count: int, check) -> int:
    """Reads `count` copies with one to three bytes changed; how many still read."""
    chance, reads = random.Random(0), 0
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(UserError):
            check(bytes(changed))
            reads += 1
    return reads
