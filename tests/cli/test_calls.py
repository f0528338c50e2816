"""What a configuration may call: the functions that the files of configs/ call, at their places."""

import shutil

import pytest
from omegaconf import OmegaConf

from bdia_exp.cli import calls, configs, files
from bdia_exp.cli.calls import nodes, require_own, targets
from bdia_exp.cli.configs import composed, listing, settings
from bdia_exp.cli.files import CONFIGS
from bdia_exp.errors import UserError

CALLED = []


def called() -> None:
    CALLED.append(1)


FOREIGN = [
    ["sampler._target_=os.system"],
    ["sampler._target_=bdia_exp.samplers.rules.ddim"],  # ours, at another place
    ["sampler._target_=bdia_exp.models.edm.load"],
    ["sampler._target_=[os.system]"],
    ["sampler._partial_=false"],
    ["sampler=deis_tab", "sampler.rule._target_=tests.cli.test_calls.called"],
    ["sampler=deis_tab", "sampler.rule._partial_=false"],
    ["+sampler.rule._target_=os.system", "+sampler.rule._partial_=true"],
    ["grid._target_=builtins.exec"],
    ["model._target_=torch.load"],
    ["+model.network._target_=os.system", "+model.network._partial_=true"],
    ["+model.network={a: [{_target_: os.system, _partial_: true}]}"],
    ["+features.x.y._target_=os.system"],
    ["+metrics={_target_: os.system}"],
    ["+sampler._args_=[1]"],
    ["+sampler._recursive_=false"],
]


@pytest.mark.parametrize("words", FOREIGN, ids=lambda words: words[-1])
def test_no_other_function_is_called(words, monkeypatch):
    monkeypatch.setattr("os.system", lambda command: CALLED.append(command))
    with pytest.raises(UserError, match=r"_target_|_partial_|metrics"):
        settings("sample", words)
    assert not CALLED


def test_a_file_of_a_user_among_ours_calls_no_foreign_function(tmp_path, monkeypatch):
    """Even where a file of configs/ names it: a function must be defined by this package."""
    (tmp_path / "sampler").mkdir()
    for target in ("os.system", "bdia_exp.dist.os.system", "bdia_exp.dist.launcher"):
        text = f"_target_: {target}\n_partial_: true\n"
        (tmp_path / "sampler" / "mine.yaml").write_text(text)
        monkeypatch.setattr(calls, "CONFIGS", tmp_path)
        targets.cache_clear()
        with pytest.raises(UserError, match="no other is called"):
            require_own({"sampler": {"_target_": target, "_partial_": True}})
    targets.cache_clear()


def test_a_rule_may_be_replaced_by_one_that_is_known_there():
    words = ["sampler=ipndm", "sampler.rule._target_=bdia_exp.samplers.rules.deis"]
    assert settings("sample", words).sampler.config["rule"]["order"] == 4


def test_every_call_in_our_files_is_partial_and_ours():
    for file in CONFIGS.glob("*/*.yaml"):
        for path, node in nodes(OmegaConf.to_container(OmegaConf.load(file))):
            if "_target_" in node:
                assert node["_partial_"] is True, (file, path)
                assert node["_target_"].startswith("bdia_exp.")


@pytest.mark.parametrize(
    "words",
    [
        "hydra.run.dir=x",
        "+hydra.run.dir=x",
        "++hydra.verbose=true",
        "hydra.searchpath=[file:///x]",
        "hydra/job_logging=none",
        "+hydra/launcher=x",
        "hydra@x=y",
    ],
)
def test_hydra_s_own_settings_are_refused(words):
    with pytest.raises(UserError, match="Hydra's own settings have no effect here"):
        settings("sample", [words])


NOT_YAML = {
    "a tab": "x:\n\ty: 1\n",
    "no end of a list": "x: [1,\ny: 2\n",
    "a key twice": "x: 1\nx: 2\n",
}


@pytest.mark.parametrize("text", NOT_YAML.values(), ids=NOT_YAML)
def test_a_file_that_is_not_yaml_is_named_with_the_line(text, tmp_path, monkeypatch):
    folder = shutil.copytree(CONFIGS, tmp_path / "configs")
    for module in (calls, configs, files):
        monkeypatch.setattr(module, "CONFIGS", folder)
    readers = {
        "experiment": lambda: composed("reproduce", ["experiment=bad"]),
        "model": listing,
        "grid": lambda: targets.__wrapped__("grid"),
    }
    for group, read in readers.items():
        (folder / group / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=rf'{group}/bad.yaml", line [23], column \d$'):
            read()
