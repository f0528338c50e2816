"""Identities: what decides an image, and what decides a score, without import paths.

An identity contains a chosen function as `{"call": "heun", "gamma": 0.5}`: its name, and the
arguments that differ from its defaults. So a renamed module, or a new key with a default, does not
change an identity. A model is identified by its class, a file by its sha256.
"""

import importlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from bdia_exp.jobs import coefficients
from bdia_exp.jobs.asked import Source, as_key, computed_from, hints_of
from bdia_exp.jobs.settings import (
    Comparing,
    Drawing,
    Editing,
    Inverting,
    Solving,
)
from bdia_exp.samplers.core import Grid
from bdia_exp.sources import checkpoints, fetch
from bdia_exp.store import records
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.records import Record

DEFAULTS = {
    as_key(field.name): field.default
    for asked in (Drawing, Editing)
    for field in fields(asked)
    if field.default is not MISSING
} | {"labels": None, "diffusion": {"call": "own"}, "control_kind": None}
"""Keys that an identity leaves out if they have these values."""

MODULES = {
    "loops": "bdia_exp.samplers.loops",
    "iia_edm": "bdia_exp.samplers.iia_edm",
    "columns": "bdia_exp.samplers.columns",
    "solvers": "bdia_exp.samplers.loops",
    "rules": "bdia_exp.samplers.rules",
    "gddim": "bdia_exp.samplers.gddim",
    "baselines": "bdia_exp.samplers.baselines",
    "sde": "bdia_exp.samplers.baselines",
    "langevin": "bdia_exp.models.langevin",
    "grids": "bdia_exp.samplers.grids",
    "edm": "bdia_exp.models.edm",
    "ddpm": "bdia_exp.models.ddpm",
    "pndm": "bdia_exp.models.ddpm",
    "stable_diffusion": "bdia_exp.models.stable_diffusion",
    "toy": "bdia_exp.models.toy",
    "features": "bdia_exp.metrics.features",
    "inception": "bdia_exp.metrics.inception",
}
"""A module's name, in old and new records → the module that has its functions now."""
FILES = {"checkpoint"}
"""The arguments that name a file. An identity has the file's sha256 instead, as it has of the file
that `coefficients.file_of` finds."""
SOURCES = sorted(
    {
        key
        for asked in (Drawing, Editing)
        for key, kind in hints_of(asked).items()
        if kind in (Source, Source | None)
    }
)
"""The keys of other files that decide an image."""
CORRECTED = {"edict": {"alternate": "order of updates"}}
"""Sampler → argument → its value in new identities. The meaning of this argument was corrected, so
results from before and after the correction have different identities."""


def plainly(config: Any) -> Any:
    """A configuration, or an old or new identity, in the form in which identities are compared.

    Every `_target_` becomes a `call`. Values that equal the defaults, and names of files, are
    removed. Data that is already in this form does not change.
    """
    found = _plain(json.loads(json.dumps(config, default=str)))
    if not isinstance(found, dict):
        return found
    return {
        key: value
        for key, value in found.items()
        if DEFAULTS.get(key, MISSING) != value and f"{key}_sha256" not in found
    }


def sampler_identity(config: Any) -> Record:
    """A sampler's configuration as a part of a new identity (see `CORRECTED`)."""
    found: Record = plainly(config)
    new = CORRECTED.get(found["call"], {})
    return {key: new.get(key, value) for key, value in found.items()}


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    found = {key: _plain(value) for key, value in node.items()}
    target = found.get("_target_")
    if not isinstance(target, str):  # a damaged record can have anything
        return found
    found = {key: found[key] for key in found.keys() - {"_target_", "_partial_"}}
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
        if key not in FILES and not coefficients.file_of({key: value})
    }


def _function(target: str) -> Callable | None:
    """The function of an import path of this or an earlier version; None if there is none."""
    path, _, name = target.rpartition(".")
    module = MODULES.get(path.rpartition(".")[2])
    return getattr(importlib.import_module(module), name, None) if module else None


def _name(function: Callable) -> str:
    """The function's name; for a model's `load`, the name of the class that it returns."""
    if function.__name__ != "load":
        return function.__name__
    return typing.get_type_hints(function)["return"].__name__


def _defaults(function: Callable) -> Record:
    """The default values of a function's arguments, in the form of identities."""
    found = {
        name: {"call": given.default.__name__} if callable(given.default) else given.default
        for name, given in inspect.signature(function).parameters.items()
        if given.default is not inspect.Parameter.empty
    }
    return json.loads(json.dumps(found))


def names_of(config: Record) -> dict[str, str]:
    """The names of files in a configuration, old or new: the identity's key of their sha256 → name.

    A file from which something is computed (auto:canny:FILE) is named without how.
    """
    model, sampler = (_node(config, key) for key in ("model", "sampler"))
    found = {
        "checkpoint": model.get("checkpoint"),
        "control_network": _node(model, "control").get("checkpoint"),
        "coefficients_sha256": (coefficients.file_of(sampler) or ("", None))[1],
    }
    named = {key: config[key] for key in SOURCES if isinstance(config.get(key), str)}
    found |= {f"{key}_sha256": computed_from(name)[1] for key, name in named.items()}
    return {what: name for what, name in found.items() if isinstance(name, str)}


def _node(config: Mapping, key: str) -> Mapping:
    """A part of a configuration; a damaged record may have anything there."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def files_of(asked: Solving, *, coefficients_too: bool = True) -> dict[str, str]:
    """The files that decide an image: the identity's key of their sha256 → their name."""
    found = names_of(asked.plain())
    beside = checkpoints.description(found["checkpoint"])
    if beside and _plain(asked.model.config)["call"] == "EDM":  # others are in the configuration
        found["description"] = beside
    if not coefficients_too:
        found.pop("coefficients_sha256", None)
    elif coefficients.is_automatic(found.get("coefficients_sha256", "")):
        found["coefficients_sha256"] = str(automatic(asked))
    unused = {f"{key}_sha256" for key in asked.unused}
    return {what: name for what, name in found.items() if what not in unused}


OF_MODEL = ("model", "diffusion", "guidance")
OF_FILES = ("checkpoint", "description", "control_network")
"""The parts of an identity for which coefficients are fitted, with the sampler and the levels."""


def fitted_for(asked: Solving) -> Record:
    """What the coefficients of these settings are for, without the levels."""
    plain = asked.plain()
    parts = {key: plain[key] for key in OF_MODEL if key not in asked.unused}
    names = files_of(asked, coefficients_too=False)
    parts |= {what: _sha256(name) or name for what, name in names.items() if what in OF_FILES}
    sampler = sampler_identity(asked.sampler.config)
    fitted = {key: value for key, value in sampler.items() if key not in coefficients.KEYS}
    return plainly({**parts, "sampler": fitted})


def automatic(asked: Solving) -> Path:
    """The file in the cache that has the coefficients of sampler.gamma=auto or coefficients=auto.

    It is fitted for all classes, so the class of a run does not change its name; its texts do.
    """
    settings = {"grid": plainly(asked.grid.config), "nfe": asked.nfe, **asked.rounding}
    if asked.has_text:
        settings |= _texts_of(asked)
    named = coefficients.file_of(asked.sampler.config) or ("", "")
    settings["coefficients"] = [coefficients.USUAL, *named]
    if coefficients.target_of(named[1]) == "features" and isinstance(asked, Comparing):
        settings |= compared_by(asked)
    digest = records.digest({**fitted_for(asked), **settings})
    name = f"{asked.model.name}-{asked.sampler.name}-nfe{asked.nfe}-{digest}.json"
    return fetch.cache() / "coefficients" / name


def compared_by(asked: Comparing) -> Record:
    """What decides a fit by features: these, and the sha256 of the reference if it is here."""
    plain = asked.plain()
    found = {key: plain[key] for key in ("features", "resize")}
    if name := asked.reference:
        found["reference"] = _sha256(name, pictures=True) or name
    return found


def _texts_of(asked: Solving) -> Record:
    """The texts of a run, and the pictures that a ControlNet follows, as an identity has them."""
    plain = asked.plain()
    keys = {"prompt", "prompts_seed"} & {*plain} - asked.unused
    names = files_of(asked, coefficients_too=False)
    files = {"prompts_sha256", "control_sha256"} & {*names}
    return {key: plain[key] for key in sorted(keys)} | {
        what: _sha256(names[what], pictures=what == "control_sha256") or names[what]
        for what in sorted(files)
    }


def coefficients_for(asked: Solving, grid: Grid) -> coefficients.Coefficients | None:
    """The coefficients that the sampler reads from a file; None if it reads none.

    Raises UserError if the file is missing or was fitted for anything else.
    """
    if not (name := files_of(asked).get("coefficients_sha256")):
        return None
    found = coefficients.Coefficients.read(name)
    found.require({**fitted_for(asked), "levels": coefficients.plain_levels(grid)})
    return found


def identity_of(asked: Drawing | Inverting, then: Mapping[str, Any], **more: Any) -> Record:
    """The identity of a run: what decides its images, with `more`, as a record keeps it.

    Files are identified by their sha256. If a file is not on this machine, its sha256 is taken from
    `then`, which `claims.known` finds in a record. Random weights made from a seed are identified
    by their name (random:0).
    """
    kind = Drawing if isinstance(asked, Drawing) else Solving
    plain = asked.plain()
    chosen = {
        key: plain[key]
        for key in (as_key(f.name) for f in fields(kind) if f.name not in asked.unused)
    }
    if isinstance(asked, Drawing) and asked.control:
        chosen["control_kind"] = computed_from(asked.control)[0]
    for what, name in files_of(asked).items():
        before = then.get(what)
        if name.startswith("random:") and (not before or str(before).startswith("random:")):
            before = name  # the oldest records have the sha256 of random weights
        if found := _sha256(name, pictures=what == "control_sha256") or before:
            chosen[what] = found
    return plainly(chosen | more | {"sampler": sampler_identity(asked.sampler.config)})


def _sha256(name: str, *, pictures: bool = False) -> str | None:
    """The sha256 of a file named in a configuration, or of a set of pictures.

    None if it is not on this machine.
    """
    if not (path := checkpoints.present(name)):
        return None
    of_folder = pictures and path.is_dir()
    return ImageSet(path).sha256() if of_folder else checkpoints.sha256(path)
