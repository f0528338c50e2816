"""Identities name things: no import path, no default; records of any age compare equal."""

import importlib
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bdia_exp.cli.calls import nodes
from bdia_exp.cli.configs import call, settings
from bdia_exp.cli.files import CONFIGS
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.jobs.claims import require_weights
from bdia_exp.jobs.identity import identity_of, plainly
from bdia_exp.sources import checkpoints
from bdia_exp.store.runs import RunFolder

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = [  # a folder, how many of its cells are there, and the command that made them
    ("demo", 12, "reproduce", "experiment=demo"),
    ("cifar10_mini", 10, "reproduce", "experiment=cifar10_mini"),
    ("gddim", 65, "reproduce", "experiment=gddim", "limit=96", "batch=48"),
    ("gddim-cifar10_mini", 59, "reproduce", "experiment=gddim-cifar10_mini"),
    ("iia", 18, "reproduce", "experiment=iia", "cells='fashion:'", "limit=5000"),
    ("iia", 18, "reproduce", "experiment=iia", "cells='cifar10_mini:'", "limit=2200"),
    ("iia", 30, "reproduce", "experiment=iia", "cells=cifar10_mini_ddim", "limit=2200"),
    ("iia", 30, "reproduce", "experiment=iia", "cells=fashion_ddim", "limit=5000"),
    ("race", 105, "reproduce", "experiment=race", "limit=300"),
    ("table1-mini", 24, "reproduce", "experiment=table1-mini"),
    ("controlnet", 9, "reproduce", "experiment=controlnet-mini"),
    ("studies/samplers", 78, "reproduce", "experiment=samplers", "limit=200", "batch=50"),
    ("studies/sweep", 20, "sweep", "images=200", "nfes=[10,20]", "batch=50"),
]


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda committed: committed[0])
def test_every_committed_cell_is_found_done(committed, capfd, tmp_path, monkeypatch):
    """Without the user's cache and `data/`: other coefficients or another reference there would
    make other runs."""
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder, count, command, *words = committed
    call(command, [*words, f"out={RESULTS / folder}", "dry_run=true"])
    done = re.search(r"(\d+) of \d+ runs are there", capfd.readouterr().out)
    assert done
    assert int(done[1]) == count


def test_an_identity_has_no_import_path_and_no_default():
    identity = identity_of(settings("sample", ["sampler=deis_tab"]), {}, seeds="0-63")
    assert len(identity.pop("checkpoint")) == 64
    assert identity == {
        "model": {"call": "EDM"},
        "sampler": {"call": "multistep", "rule": {"call": "deis"}},
        "grid": {"call": "quad"},
        "nfe": 35,
        "seeds": "0-63",
    }


CALLS = sorted(
    {
        node["_target_"]
        for file in CONFIGS.glob("*/*.yaml")
        if file.parent.name != "launcher"  # decides no image
        for _, node in nodes(OmegaConf.to_container(OmegaConf.load(file)))
        if "_target_" in node
    }
)


@pytest.mark.parametrize("target", CALLS)
def test_the_defaults_of_every_call_in_configs_are_left_out(target):
    """Its module is one of `MODULES`."""
    module, _, name = target.rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    given = {
        key: {"_target_": f"{one.__module__}.{one.__name__}"} if callable(one) else one
        for key, one in ((key, parameter.default) for key, parameter in known.items())
        if one is not inspect.Parameter.empty
    }
    assert plainly({"_target_": target, **given}).keys() == {"call"}


def test_the_json_beside_the_weights_is_part_of_the_identity(tmp_path):
    """It decides the network. For a bundled file it is part of the package."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(checkpoints.BUNDLED / f"fashion_mini{suffix}", tmp_path / f"net{suffix}")
    words = ["model=edm", f"model.checkpoint={tmp_path}/net.safetensors"]
    first = identity_of(settings("sample", words), {}, seeds="0-63")
    assert first["description"] == checkpoints.sha256(tmp_path / "net.json")
    provenance = settings("sample", words).model.make(device="cpu", dtype="auto").provenance
    assert provenance["description"] == first["description"]
    about = json.loads((tmp_path / "net.json").read_text())
    about["network"]["sigma_data"] = 0.7
    (tmp_path / "net.json").write_text(json.dumps(about))
    second = identity_of(settings("sample", words), {}, seeds="0-63")
    assert {key for key in first if first[key] != second[key]} == {"description"}
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"net{suffix}").unlink()
    assert identity_of(settings("sample", words), second, seeds="0-63") == second
    bundled = identity_of(settings("sample", []), {}, seeds="0-63")
    assert "description" not in bundled


def test_null_is_a_value_where_it_is_not_the_default():
    """prompts_seed=null takes captions in the order of the file; 0 is the default."""
    words = ["model=tiny-sd", "nfe=10"]
    shuffled, in_order = (
        identity_of(settings("sample", [*words, f"prompts_seed={seed}"]), {}, seeds="0-63")
        for seed in ("0", "null")
    )
    assert "prompts_seed" not in shuffled
    assert in_order == shuffled | {"prompts_seed": None}


@pytest.mark.parametrize(
    ("command", "usual", "words"),
    [
        ("sample", 9.0, ["prompts=bundled:captions.csv"]),
        ("sample", 9.0, ["prompt=a cat"]),
        ("invert", 3.0, ["x.png", "prompt=''"]),
        ("edit", 3.0, ["x.png", "prompt=a cat", "to=a dog"]),
    ],
)
def test_the_usual_guidance_is_that_of_texts(command, usual, words):
    """It has a value in the identity and the record if there is a text, and none otherwise."""

    def asked(*more):
        (overrides,) = expand(command, (*words, "model=tiny-sd", *more), multirun=False)
        return settings(command, overrides)

    assert asked().guidance == asked().plain()["guidance"] == usual
    assert identity_of(asked(), {})["guidance"] == usual
    assert identity_of(asked(), {}) == identity_of(asked(f"guidance={usual}"), {})
    assert asked("guidance=7").guidance == 7
    assert asked("prompt=null", *(["prompts=null"] * (command == "sample"))).guidance is None


def test_weights_are_those_that_were_claimed(tmp_path):
    """A published file may have changed since the run's first start."""
    run = RunFolder(tmp_path)
    run.identity = {"checkpoint": "0" * 64, "control_network": "random:0"}
    require_weights(run, {"sha256": "0" * 64, "control_sha256": "1" * 64})
    with pytest.raises(UserError, match=r"checkpoint was 0+, now 2+"):
        require_weights(run, {"sha256": "2" * 64})


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("record.json")), ids=str)
def test_old_identities_lose_their_import_paths_and_stay_what_they_are(file):
    identity = json.loads(file.read_text()).get("identity", {})
    plain = plainly(identity)
    assert "bdia_exp" not in json.dumps(plain)
    assert plainly(plain) == plain
    assert bool(identity) == bool(plain)
