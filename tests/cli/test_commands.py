"""The command line: every configuration builds, every mistake gets one sentence."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bdia_exp.cli import main
from bdia_exp.cli.calls import check
from bdia_exp.cli.configs import composed, settings
from bdia_exp.cli.files import CONFIGS, commands, groups_of, options, text_of
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.jobs import experiments
from bdia_exp.jobs.asked import Choice, as_key
from bdia_exp.jobs.coefficients import bare
from bdia_exp.verbs import names, verb
from tests.asking import one_sentence
from tests.laws import LINEAR, LINEAR_OTHERS, SAMPLERS, STOCHASTIC

GIVEN = {
    "reproduce": ["experiment=demo"],
    "table": ["experiment=demo"],
}


PACKAGE = Path(__file__).parents[2] / "bdia_exp"


def invoke(*words: str):
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_lists_every_key_and_choice(command):
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    config, _ = composed(command, GIVEN.get(command, []))
    keys = [str(key) for key in config if re.search(rf"^{key}:", text_of(command), re.M)]
    assert bool(keys) == (command != "models")
    assert all(f"  {key}:" in shown.output for key in keys)
    if command == "sample":
        for group in ("model", "sampler", "grid", "features"):
            assert all(name in shown.output for name in options(group))


@pytest.mark.quick
@pytest.mark.parametrize("command", sorted(main.commands))
def test_config_keys_are_the_parameters_of_the_verbs(command):
    config, _ = composed(command, GIVEN.get(command, []))
    asked = fields(verb(command).asks)
    own = {key for key in config if re.search(rf"^{key}:", text_of(command), re.M)}
    own |= {group for group in groups_of(command) if group in config}
    own -= {"features"} if command in ("invert", "roundtrip") else set()
    assert own == {as_key(field.name) for field in asked}
    for field in asked:  # a record without a key was made with what is the default still
        if field.default is not MISSING:
            default = field.default
            plain = default.config if isinstance(default, Choice) else default
            assert config[as_key(field.name)] == plain


CODE = "".join(
    path.read_text() for room in ("jobs", "verbs") for path in (PACKAGE / room).glob("*.py")
)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_no_verb_has_a_key_that_nothing_reads(command):
    for field in fields(verb(command).asks):
        key = as_key(field.name)
        assert re.search(rf'\b(asked|self)\.{field.name}\b|"{key}"', CODE), key


def test_every_configuration_is_a_verb_and_the_other_way_round():
    assert commands() == names() == sorted(main.commands)


GROUPS = [(group, name) for group in ("sampler", "grid", "model") for name in options(group)]


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_yaml_builds_and_binds(group, name):
    words = [f"{group}={name}"]
    if (group, name) in (("model", "edm"), ("model", "sd")):
        words.append("model.checkpoint=bundled:fashion_mini.safetensors")
    built = getattr(settings("sample", words), group).make
    built = built if isinstance(built, partial) else partial(built)
    inspect.signature(built.func).bind_partial(**built.keywords)
    check(built.func, built.keywords)


@pytest.mark.parametrize("name", options("sampler"))
def test_every_sampler_yaml_goes_through_the_laws(name):
    """It is the call of a line in the test list, whatever defaults either leaves out."""

    def call(sampler):
        function = sampler.func if isinstance(sampler, partial) else sampler
        given = sampler.keywords if isinstance(sampler, partial) else {}
        known = inspect.signature(function).parameters
        defaults = {k: p.default for k, p in known.items() if p.default is not p.empty}
        return function, {
            k: call(v) if isinstance(v, partial) or (v and k in ("rule", "columns")) else v
            for k, v in (defaults | given).items()
        }

    built = call(bare(settings("sample", [f"sampler={name}"]).sampler))
    entries = (*SAMPLERS, *STOCHASTIC, *LINEAR, *LINEAR_OTHERS)
    assert built in [call(entry.sampler) for entry in entries]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_cell_of_every_experiment_builds(name):
    config, _ = composed("reproduce", [f"experiment={name}"])
    experiment = OmegaConf.to_container(config.experiment)
    for cell in experiments.cells_of(experiment, Path("somewhere")):
        assert settings("sample", list(cell.overrides)).nfe > 0


def in_one_go(words: list[str]):
    """What Hydra itself composes from all words."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose("sample", words), resolve=True)


@pytest.mark.parametrize("name", options("experiment"))
def test_values_set_on_composed_choices_are_what_hydra_composes(name):
    config, _ = composed("reproduce", [f"experiment={name}"])
    experiment = OmegaConf.to_container(config.experiment)
    cells = experiments.cells_of(experiment, Path("somewhere"))
    for cell in [cells[0], cells[-1]]:
        words = [*cell.overrides, "metrics=[fid,kid]", "seeds='0-9,20'", "class=null", "out=a"]
        made, _ = composed("sample", words)
        assert OmegaConf.to_container(made, resolve=True) == in_one_go(words)


def test_sampler_brings_its_grid_and_the_command_line_overrules_it():
    assert composed("sample", ["sampler=ddim"])[1]["grid"] == "quad"
    assert composed("sample", ["sampler=ddim", "grid=uniform"])[1]["grid"] == "uniform"
    assert composed("sample", ["grid=uniform", "sampler=ddim"])[1]["grid"] == "uniform"
    assert composed("sample", ["sampler=bdia_edm"])[1]["grid"] == "karras"


def test_a_diffusion_brings_its_sampler_and_its_grid():
    """Its grid is the only one that it has, so it wins over a sampler's, but not over a word."""
    for words, sampler, grid in (
        ([], "bdia_ddim", "quadratic_time"),
        (["sampler=ddim"], "ddim", "quadratic_time"),
        (["model=ddim_cifar10", "sampler=gddim"], "gddim", "quadratic_time"),
        (["grid=karras"], "bdia_ddim", "karras"),
    ):
        chosen = composed("sample", ["diffusion=cld", *words])[1]
        assert (chosen["sampler"], chosen["grid"]) == (sampler, grid)


def test_commas_and_paths_need_no_quotes():
    (words,) = expand("sample", ("seeds=0-9,20", "out=a b/c,d=e's", "nfe=35"), multirun=False)
    config, _ = composed("sample", words)
    assert (config.seeds, config.out, config.nfe) == ("0-9,20", "a b/c,d=e's", 35)


def test_multirun_is_the_product():
    runs = expand("sample", ("sampler=edm,bdia_edm", "nfe=15,23", "images=8"), multirun=True)
    assert runs[0] == ["sampler=edm", "nfe=15", "images=8"]
    assert len(runs) == 4


def test_cfg_prints_and_does_not_run(tmp_path):
    shown = invoke("sample", "--cfg", "job", "nfe=23", f"out={tmp_path / 'x'}")
    assert shown.exit_code == 0
    assert OmegaConf.create(shown.output).nfe == 23
    assert not (tmp_path / "x").exists()


MISTAKES = {
    "sample sampler=bdia_emd": "did you mean 'bdia_edm'?",
    "sample sampler.gama=1": "did you mean 'sampler.gamma'?",
    "sample nfee=3": "did you mean 'nfe'?",
    "sample +sampler.gama=1": "did you mean 'gamma'?",
    "sample grid=kerras": "did you mean 'karras'?",
    "sample nfe=34": "choose 33 or 35",
    "sample nfe=0": "choose 1 or more",
    "sample nfe=-3": "choose 1 or more",
    "sample nfe=many": "nfe=many must be a whole number",
    "sample nfe=3.5": "nfe=3.5 must be a whole number",
    "sample nfe": "not of the form key=value",
    "sample sampler.gamma=high": "nothing is at high",
    "sample sampler.gamma=-1": "sampler.gamma=-1 must be 0 to 1",
    "sample sampler.gamma=1.01": "sampler.gamma=1.01 must be 0 to 1",
    "sample sampler.gamma=nan": "sampler.gamma=nan must be a finite number",
    "sample sampler.refine=litteral": "did you mean 'literal'?",
    "sample sampler=bdia2 sampler.gamma2=1.5": "sampler.gamma2=1.5 must be 0 to 1",
    "sample sampler=edm_churn grid=quad nfe=5": "choose grid=karras",
    "sample sampler=edm_churn sampler.S_churn=-5.0": "must be 0 or more",
    "sample sampler=edm_churn sampler.S_churm=1": "did you mean 'sampler.S_churn'?",
    "sample sampler=deis_tab sampler.rule.order=5": "order=5 must be 1, 2, 3 or 4",
    "sample sampler=deis_tab sampler.rule.order=two": "order=two must be a whole number",
    "sample sampler=deis_tab sampler.rule.clock=rhoo": "did you mean 'rho'?",
    "sample sampler=f_pndm sampler.start=rk3": "did you mean 'rk4'?",
    "sample sampler=f_pndm nfe=10": "choose 8 or 12",
    "sample sampler=edict sampler.p=0": "sampler.p=0",
    "sample sampler=rex sampler.zeta=0": "sampler.zeta=0 must be more than 0",
    "sample sampler=rex sampler.tableau=rk5": "sampler.tableau='rk5' is unknown",
    "sample sampler=rex sampler.tableau=rk4 nfe=40": "choose 34 or 42",
    "sample sampler=cbdia sampler.gamma1=0.96": "different: equal ones cannot be undone",
    "sample grid=quad grid.pairing=ddmi": "did you mean 'ddim'?",
    "sample grid.sigma_min=100": "0 < min < max",
    "sample class=12": "this model has classes 0 to 9",
    "sample model=edm": "give model.checkpoint=",
    "sample model.checkpoint=/nothing/here.pkl": "EDM's checkpoints are at https",
    "sample seeds=5-3": "runs backwards",
    "submit sample seeds=5-3 launcher=bash": "runs backwards",
    "sample seeds=1,1": "given twice",
    "sample images=4 seeds=7": "not both",
    "sample images=0": "images=0 must be 1 or more",
    "sample batch=0": "batch=0 must be 1 or more",
    "sample save=tar": "save='tar' is unknown",
    "sample dtype=float31": "did you mean 'float32'?",
    "sample device=tpu": "device='tpu' is unknown",
    "sample score=true images=8 reference=/nothing.npz save=none": "/nothing.npz: a FID needs",
    "sample score=true images=8 reference=null save=none": "give reference=",
    "sample score=true images=99 metrics=[kidd] save=none": "did you mean 'kid'?",
    "sample score=true images=99 metrics=[kid] save=none": "keep=true",
    "sample score=true features=inception features.resize=tensorflov": "did you mean 'tensorflow'?",
    "sample score=true features=inception features.weights=/no.pth": "nothing is at /no.pth",
    "sample model=edm_cifar10": "edm-cifar10-32x32-cond-vp.pkl is not here",
    "sample model=edm model.checkpoint=fetch:edm-cifar10.pkl": "no published file is called",
    "sample model=ddim_cifar10": "ddim_cifar10.ckpt is not here",
    "sample model=ddim_cifar10 model.network.ch=33": "ch=33 must be a multiple of 32",
    "fetch": "give what=",
    "fetch edm_cifar": "did you mean 'edm_cifar10'",
    "fetch edm-cifar10-32x32-cond-vp.pkl": "BDIA_EXP_OFFLINE is set",
    "fetch fid_celeba_train.npz": "has to be downloaded by a person",
    "reference": "give images=",
    "reference /nothing/here out=x": "/nothing/here does not exist",
    "models -p 2": "-p is for evaluate, reference, reproduce, sample, sweep, not for models",
    "sample score=true images=99 metrics=fid,kidd save=none": "did you mean 'kid'?",
    "sample score=true images=99 metrics=[fid,3] save=none": "metrics=3 is unknown",
    "sample -p 0": "-p 0: give a number of processes, or gpu",
    "sample -p two": "-p two: give a number of processes, or gpu",
    "evaluate": "give images=",
    "evaluate /nothing/here": "/nothing/here does not exist",
    "reproduce": "give experiment=: one of ",
    "reproduce dmeo": "did you mean 'demo'?",
    "reproduce demo cells=nonsense": "no cell of demo",
    "reproduce demo limit=0": "limit=0 must be 1 or more",
    "reproduce demo repeats=0": "repeats=0 must be 1 or more",
    "reproduce demo tflops=0": "tflops=0 must be more than 0",
    "table demo report=mni": "did you mean 'min'?",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_get_one_sentence(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    assert MISTAKES[words] in one_sentence(*words.split())


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_missing_gpu_is_said():
    assert "PyTorch sees no GPU here; use device=cpu" in invoke("sample", "device=cuda").output


def test_full_disk_is_said(tmp_path, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    answer = invoke("sample", "nfe=3", "images=2", f"out={tmp_path}", "device=cpu")
    assert answer.exit_code == 1
    assert "no room left on the disk" in answer.output
    assert not list(tmp_path.rglob("*.part"))


def test_wrong_type_in_a_nested_key_is_found_before_anything_runs():
    with pytest.raises(UserError, match=r"grid.rho=seven must be a number"):
        settings("sample", ["grid.rho=seven"])


def test_completion_offers_choices_and_keys():
    def complete(*words: str) -> list[str]:
        environment = os.environ | {
            "_BDIA_EXP_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["bdia-exp", *words]),
            "COMP_CWORD": str(len(words)),
        }
        code = "from bdia_exp.cli import main; main(prog_name='bdia-exp')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        return [line.split(",")[-1] for line in done.stdout.split()]

    assert complete("sample", "sampler=bdia_d") == [
        "sampler=bdia_ddim",
        "sampler=bdia_ddim_hat",
        "sampler=bdia_deis",
        "sampler=bdia_dpmpp_2m",
    ]
    assert "nfe=" in complete("sample", "n")
    assert "sample" in complete("sa")


@pytest.mark.quick
def test_models_lists_the_bundled_ones():
    shown = invoke("models")
    for name in ("fashion_mini", "mini_sd"):
        (line,) = (line for line in shown.output.splitlines() if f"model={name} " in line)
        assert float(re.search(r"ready \((.*) MB\)", line)[1]) > 3
