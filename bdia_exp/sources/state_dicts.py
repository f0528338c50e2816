"""Finds a network's weights in the contents of a file: averaged (EMA) weights first.

Training programs write a state dict alone, or in a dict or list with other things: the optimiser,
counters, averaged weights. They also put prefixes before the names of the network's parameters.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from torch import Tensor

from bdia_exp.errors import UserError, brief, few

RAW = ("state_dict", "model", "model_state_dict", "module", "net", "unet", "params")
"""Where a dict may keep the weights that were trained."""
WRAPPERS = ("module.", "model.", "_orig_mod.", "online_model.")
"""Prefixes that are no part of a network's own names."""
OWN = ("model.map_layer0.", "model.diffusion_model.")
"""Names of EDM's and Stable Diffusion's networks, whose own names begin with `model.`."""
MAX_DEPTH, MAX_STEPS = 4, 5_000_000

_AVERAGED = {"ema", "shadow", "swa", "averaged", "average"}
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MARK = re.compile("_(?:{0})$|(?:^|(?<=_))(?:{0})(?:_|$)".format("|".join(sorted(_AVERAGED))), re.I)

State = dict[str, Tensor]


def weights_of(root: Any) -> State:
    """The weights in the contents of a file, by the network's own names.

    `root` is a state dict, or a dict or list that contains one, at most `MAX_DEPTH` deep. Averaged
    weights are taken first, if a key or a prefix says what they are: `ema`, `model_ema.`,
    `conv.weight_ema` and the like. Of a list it is the last state dict: DDIM's program writes
    [weights, optimiser, epoch, step, averaged weights]. Prefixes in `WRAPPERS` that all names have
    are removed. Numbers and other things beside the weights are left out.

    Raises UserError if there are no weights, or if averaged weights are beside raw ones but cannot
    be matched with them.
    """
    found = _inside(root, MAX_DEPTH, set(), count())
    if found is None:
        what = f"a dict of {few(root)}" if isinstance(root, dict) and root else type(root).__name__
        raise UserError(f"no weights in it: it should have names with tensors, but is {what}")
    return _unwrapped(found)


def _inside(value: Any, depth: int, seen: set[int], steps: Iterator[int]) -> State | None:
    if not depth or id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, (list, tuple)):
        states = (_inside(inner, depth - 1, seen, steps) for inner in reversed(value))
        return next((state for state in states if state), None)
    if not isinstance(value, dict):
        return None
    # Lightning keeps the averages of a callback among the states of its callbacks.
    callbacks = value.get("callbacks")
    named = (callbacks if isinstance(callbacks, dict) else {}) | value
    named = {key: inner for key, inner in named.items() if isinstance(key, str)}
    flat = {key: inner for key, inner in named.items() if isinstance(inner, Tensor)}
    averages = [key for key in named if key not in flat and _says_averaged(key)]
    averages = [key for key in averages if _has_arrays(named[key], steps)]
    usable = {
        key: state for key in averages if (state := _inside(named[key], depth - 1, seen, steps))
    }
    if len(usable) > 1:
        raise UserError(f"it has more than one set of averaged weights ({few(usable)}): keep one")
    if usable:
        return next(iter(usable.values()))
    raw: dict[str, State | None] = {
        key: _inside(named[key], depth - 1, seen, steps)
        for key in RAW
        if key in named and key not in flat
    }
    raw |= dict.fromkeys(list(flat)[:1], _averaged_first(flat))
    raw = {key: state for key, state in raw.items() if state}
    if averages and raw:
        raise _ambiguous(averages[0], next(iter(raw)), "the averaged ones have no names")
    return next(iter(raw.values()), None)


def _averaged_first(flat: State) -> State | None:
    """The weights of a flat state dict: if it has averages of them, these under the raw names."""
    if not any(tensor.ndim for tensor in flat.values()):
        return None
    # A number at the top, such as `epoch` or `n_averaged`, is no weight of a network.
    flat = {name: tensor for name, tensor in flat.items() if tensor.ndim or "." in name}
    averages = {n: t for n, t in flat.items() if any(map(_says_averaged, n.split(".")))}
    raw = {name: tensor for name, tensor in flat.items() if name not in averages}
    if not _arrays(averages):
        return flat
    if not _arrays(raw):
        return _once((_unmarked(name), flat[name]) for name in _arrays(averages))
    by_key = {_key(name): name for name in raw}
    average_of: dict[str, str] = {}
    for name, tensor in averages.items():
        own = by_key.get(_key(_unmarked(name)))
        if own is None and not tensor.ndim:
            continue  # a counter, such as model_ema.num_updates
        if own is None or own in average_of or raw[own].shape != tensor.shape:
            raise _ambiguous(name, own or next(iter(raw)), "one has no counterpart of its shape")
        average_of[own] = name
    # Other networks may be beside the averaged one, but no part of it may be without an average.
    rest = [name for name in _arrays(raw) if name not in average_of]
    if rest and not any(
        all(name.startswith(part) for name in average_of)
        and not any(name.startswith(part) for name in rest)
        for part in WRAPPERS
    ):
        raise _ambiguous(next(iter(averages)), rest[0], f"{brief(rest[0])} has no average")
    return {name: flat[average_of.get(name, name)] for name in raw}


def _arrays(state: State) -> list[str]:
    return [name for name, tensor in state.items() if tensor.ndim]


def _once(entries: Iterable[tuple[str, Tensor]]) -> State:
    state: State = {}
    for name, tensor in entries:
        if name in state:
            raise UserError(f"it has two tensors for {brief(name)}: keep one")
        state[name] = tensor
    return state


def _ambiguous(averaged: str, raw: str, why: str) -> UserError:
    return UserError(
        f"it has averaged weights ({brief(averaged)}) and raw ones ({brief(raw)}) that do not "
        f"match: {why}; save the set that you want in a file of its own"
    )


def _says_averaged(part: str) -> bool:
    return not _AVERAGED.isdisjoint(word.lower() for word in _WORD.findall(part))


def _unmarked(name: str) -> str:
    """A name without what says that it is an average: model_ema.x → model.x, a.b_ema → a.b."""
    parts = (_MARK.sub("", part) for part in name.split("."))
    return ".".join(part for part in parts if part)


def _key(name: str) -> str:
    """What a parameter and its average have in common. Stable Diffusion's averages have names
    without dots."""
    while prefix := next((w for w in WRAPPERS if name.startswith(w)), ""):
        name = name.removeprefix(prefix)
    return name.replace(".", "")


def _unwrapped(state: State) -> State:
    """Without the prefixes that all arrays share; numbers that do not share them are left out."""
    while not any(name.startswith(OWN) for name in _arrays(state)):
        for prefix in WRAPPERS:
            if all(name.startswith(prefix) for name in _arrays(state)):
                break
        else:
            break
        state = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return state


def _has_arrays(value: Any, steps: Iterator[int]) -> bool:
    return any(isinstance(inner, Tensor) and inner.ndim for inner in _walk(value, steps))


def _walk(value: Any, steps: Iterator[int]) -> Iterator[Any]:
    """Everything in dicts, lists and tuples, each object once."""
    todo, seen = [value], set[int]()
    while todo:
        inner = todo.pop()
        if next(steps) >= MAX_STEPS:  # many keys may lead to the same things
            raise UserError("refused: it contains more than any file of weights")
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        yield inner
        if isinstance(inner, dict):
            todo.extend(inner.values())
        elif isinstance(inner, (list, tuple)):
            todo.extend(inner)
