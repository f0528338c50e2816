"""Identities: what decides an image, and what decides a score, named without import paths.

In an identity a chosen function stands as `{"call": "heun", "gamma": 0.5}`: its name, and the
arguments that differ from its defaults. So a renamed module, or a new key with a default, changes no
identity. A model stands there by its class, a file by its sha256.
"""

import importlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

from bdia_exp import checkpoints
from bdia_exp.results import Record

DEFAULT_IMAGES = 64
IDENTITY = ("model", "sampler", "grid", "nfe", "class", "dtype", "noise_device")
"""The keys that decide what image a seed gives; they and the seeds name a run."""
CAPTIONS = ("prompts", "prompts_seed")
"""Added where the captions come from a file."""
SCORED_BY = ("reference", "features", "metrics", "resize", "clip")
"""The keys that decide, beside the images, what their score is."""
DEFAULTS = {"dtype": "auto", "noise_device": "cpu", "prompts_seed": 0}
"""Keys of identities that are left out where they have these values."""

ROOMS = {
    "solvers": "bdia_exp.solvers",
    "rules": "bdia_exp.rules",
    "grids": "bdia_exp.grids",
    "edm": "bdia_exp.models.edm",
    "pndm": "bdia_exp.models.pndm",
    "stable_diffusion": "bdia_exp.models.stable_diffusion",
    "features": "bdia_exp.metrics.features",
    "inception": "bdia_exp.metrics.inception",
}
"""From a module's name, in records of any age, to where its functions are now."""
FILES = {"checkpoint"}
"""The arguments of a chosen function that name a file. Its sha256 stands beside."""


def plainly(config: Any) -> Any:
    """A configuration, or an identity of any age, in the form that identities are compared in.

    Every `_target_` becomes a `call`, arguments with the value of the function's default go, and so
    do keys without a value and names of files. What is in this form already stays as it is.
    """
    found = _plain(json.loads(json.dumps(config, default=str)))
    if not isinstance(found, dict):
        return found
    return {
        key: value
        for key, value in found.items()
        if DEFAULTS.get(key) != value and f"{key}_sha256" not in found
    }


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    found = {key: _plain(value) for key, value in node.items() if value is not None}
    target = found.pop("_target_", None)
    if target is None:
        return found
    found.pop("_partial_", None)
    function = _function(target)
    defaults = _defaults(function) if function else {}
    name = _name(function) if function else target.rpartition(".")[2]
    return {"call": name} | {
        key: value
        for key, value in _without_files(found).items()
        if key not in defaults or defaults[key] != value
    }


def _without_files(arguments: Record) -> Record:
    return {
        key: _without_files(value) if isinstance(value, dict) else value
        for key, value in arguments.items()
        if key not in FILES
    }


def _function(target: str) -> Callable | None:
    """The function of an import path of today or of an earlier release."""
    path, _, name = target.rpartition(".")
    room = ROOMS.get(path.rpartition(".")[2])
    return getattr(importlib.import_module(room), name, None) if room else None


def _name(function: Callable) -> str:
    """A function's own name; of a model's `load` that of the class it returns."""
    if function.__name__ != "load":
        return function.__name__
    return typing.get_type_hints(function)["return"].__name__


def _defaults(function: Callable) -> Record:
    """What a function's arguments are where they are not given, in the form of identities."""
    return {
        name: {"call": given.default.__name__} if callable(given.default) else given.default
        for name, given in inspect.signature(function).parameters.items()
        if given.default is not inspect.Parameter.empty
    }


def same_score(old: Record, new: Record) -> bool:
    """Whether two configurations of `sample` score the same images alike."""
    first, second = (plainly({key: config.get(key) for key in SCORED_BY}) for config in (old, new))
    return bool(first == second)


def identity_of(config: Record, known: Mapping[str, Any]) -> Record:
    """What decides the images of a run of `sample`, in the form that a record keeps.

    The files among it stand there with their sha256; of those that are not on this machine, or are
    no files, it is the one that is `known`.
    """
    seeds, images = config["seeds"], config["images"]
    wanted = str(seeds) if seeds is not None else f"0-{(images or DEFAULT_IMAGES) - 1}"
    keys, files = [*IDENTITY], {"checkpoint": config["model"]["checkpoint"]}
    if control := config["model"].get("control"):
        files["control_network"] = control["checkpoint"]
    if config.get("prompt") is not None:
        keys += ["prompt", "guidance"]
    elif config.get("prompts") is not None:
        keys += [*CAPTIONS, "guidance"]
        files["prompts_sha256"] = config["prompts"]
    if config.get("control") is not None:
        keys.append("control")
        files["control_sha256"] = config["control"]
    chosen = {key: config[key] for key in keys} | {"seeds": wanted}
    hashes = {what: _sha256(name) or known.get(what) for what, name in files.items()}
    return plainly(chosen | hashes)


def _sha256(name: str) -> str | None:
    """Of a file by its name in a configuration, if it is on this machine."""
    path = checkpoints.present(name)
    return checkpoints.sha256(path) if path else None
