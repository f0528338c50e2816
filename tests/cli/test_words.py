"""The words after a command: names with =, texts, sweeps, and what is no override."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from bdia_exp.cli import main
from bdia_exp.cli.configs import settings
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from tests.asking import one_sentence


def asked(command: str, *words: str):
    (one,) = expand(command, words, multirun=False)
    return settings(command, one)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["runs/sampler=edm,nfe=35", "./a=b", "~/x=1/y", "/a b=c", "a-b=c"])
def test_a_first_word_that_cannot_be_a_key_is_a_path(name):
    assert asked("evaluate", name, "batch=3").images == name


def test_a_first_word_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("epoch=3-step=100", "sampler=edm,nfe=35", "batch=3"):
        (tmp_path / name).mkdir()
    assert asked("evaluate", "epoch=3-step=100").images == "epoch=3-step=100"
    assert asked("evaluate", "sampler=edm,nfe=35").images == "sampler=edm,nfe=35"
    with pytest.raises(UserError, match="give images="):  # a key stays a key
        asked("evaluate", "batch=3")


@pytest.mark.parametrize("out", ["2024", "true", "[a]", "{b}", "a,b", "it's", "x=y", "1e5", "nan"])
def test_the_name_of_a_file_is_never_a_number_or_a_list(out):
    assert asked("sample", f"out={out}").out == out
    assert asked("sample", f"prompts={out}").prompts == out


def test_null_quotes_and_interpolations_stay(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "here")
    assert asked("sample", "out=null").out is None
    assert asked("sample", "out='null'").out == "null"
    assert asked("sample", "out=${oc.env:SOMEWHERE}").out == "here"


def test_words_of_a_c_locale_are_utf_8():
    given = "prompt=Käfer".encode().decode("ascii", "surrogateescape")
    assert asked("sample", "model=tiny-sd", given).prompt == "Käfer"


# -- lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[ddim, bdia_ddim sampler.gamma=0.9]",
        "[ddim,\n          bdia_ddim sampler.gamma=0.9]",
        '["ddim", "bdia_ddim sampler.gamma=0.9"]',
        "['ddim', bdia_ddim sampler.gamma=0.9]",
        "ddim,bdia_ddim sampler.gamma=0.9",
    ],
)
def test_a_list_is_read_as_help_prints_it(text):
    methods = asked("edits", "x.png", "to=1", f"methods={text}").methods
    names = methods.split(",") if isinstance(methods, str) else methods
    assert names == ["ddim", "bdia_ddim sampler.gamma=0.9"]


def test_every_list_of_every_help_can_be_copied():
    for command, key in [("edits", "methods"), ("convergence", "samplers"), ("sweep", "gammas")]:
        first = ["x.png", "to=1"] if command == "edits" else []
        shown = CliRunner().invoke(main, [command, "--help"], terminal_width=200).output
        text = shown[shown.index(f"  {key}: [") + len(key) + 4 :].split("]")[0] + "]"
        assert len(getattr(asked(command, *first, f"{key}={text}"), key)) > 3


# -- sweeps --------------------------------------------------------------------------------------


def values(*words: str, key: str = "prompt") -> list:
    runs = expand("sample", ("model=tiny-sd", *words), multirun=True)
    return [getattr(settings("sample", run), key) for run in runs]


@pytest.mark.parametrize(
    "text", ["it's red", "a cat, asleep", "[a], {b}", '5" tall, 3" wide', "1,2"]
)
def test_a_sweep_never_splits_a_text(text):
    assert values(f"prompt={text}", "nfe=1,2") == [text, text]


def test_a_sweep_of_texts_is_in_quotes():
    assert values("prompt='a cat, asleep', \"it's\"") == ["a cat, asleep", "it's"]
    runs = expand("edit", ("x.png", "to=3,5"), multirun=True)
    assert [settings("edit", run).to for run in runs] == [3, 5]  # classes are numbers


def test_other_keys_are_swept_by_commas_and_by_hydra_s_functions():
    assert values("nfe=1, 2", key="nfe") == [1, 2]
    assert values("nfe=range(1,4)", key="nfe") == [1, 2, 3]
    assert values("metrics=[fid,kid]", key="metrics") == [["fid", "kid"]]
    assert values("seeds=0-1,7", key="seeds") == ["0-1", 7]
    assert values("out=a b,c", key="out") == ["a b", "c"]


def test_each_run_of_a_sweep_has_a_folder_below_out():
    outs = values("sampler=edm,ddim", "nfe=3,5", "out=x y", key="out")
    assert outs == [f"x y/sampler={s},nfe={n}" for s in ("edm", "ddim") for n in (3, 5)]
    assert values("nfe=3", "out=x", key="out") == ["x"]
    assert values("nfe=3,5", "out=x,y", key="out") == ["x", "y", "x", "y"]
    assert values("nfe=3,5", "out=null", key="out") == [None, None]
    long = values(f"prompt='{'a' * 300}','{'a' * 301}'", "out=x", key="out")
    assert len({Path(out).name[:120] for out in long}) == 2
    files = expand("evaluate", ("x", "limit=3,5", "out=x.json"), multirun=True)
    assert [settings("evaluate", run).out for run in files] == ["x/limit=3.json", "x/limit=5.json"]


# -- what is no override -------------------------------------------------------------------------

TABLE = "table demo 'experiment.tables=[{name:x,title:x,axis:x,rows:{a:[]},columns:{b:[]},"
MISTAKES = {
    "sample prompt=a red bus": "quote the whole text: prompt='a red bus'",
    "sample prompt='a red' bus nfe=3": "quote the whole text: prompt='a red bus'",
    "sample ~batch": "~batch: a key cannot be removed",
    "sample ~batch=3": "a key cannot be removed",
    "sample sampler=bdia": "did you mean 'bdia2', 'bdia_ddim', 'bdia_ddim_hat', 'bdia_deis'",
    "sample gamma=0.5": "did you mean 'sampler.gamma'?",
    "sample +nfe=3": "nfe is a key already: write nfe= without +",
    "sample sampler@x=ddim": "there is no key 'sampler@x'",
    "sample 'nfe =3'": "there is no key 'nfe '",
    "sample =3": "there is no key ''",
    "sample sampler..gamma=3": "there is no key 'sampler..gamma'",
    "evaluate batch=3 runs/x": "put it first, or write images=runs/x",
    "evaluate ''": "give images=",
    "reproduce demo overrides='a b'": "overrides: 'a' is not of the form key=value",
    "reproduce demo report=": "report='' is unknown",
    "reproduce demo repeats=1000000000000": "repeats=1000000000000 must be at most 1000",
    "reproduce demo +experiment.repeats=x": "experiment.repeats must be a whole number, not 'x'",
    "reproduce demo experiment.images=0": "experiment.images=0 must be 1 or more",
    "reproduce demo experiment.tables=[{name:x}]": "tables.0.title must be a text, not None",
    "table demo experiment.tables=[]": "experiment.tables must not be empty",
    TABLE + "published:{a:3}}]'": "tables.0.published.a must be keys with values, not 3",
    TABLE + "published:{c:{}}}]'": "tables.0.published has the key 'c'; use one of a",
    TABLE + "published:{a:{c:3}}}]'": "tables.0.published.a has the key 'c'; use one of b",
    TABLE + "published:{a:{b:x}}}]'": "published.a.b must be a number above 0, not 'x'",
    TABLE + "match:{b:0}}]'": "tables.0.match.b must be a number above 0, not 0",
    "convergence problems=[[1]]": "problems: [1] is a list within the list",
    "convergence samplers='ddim x'": "samplers: 'x' is not of the form key=value",
    "convergence steps=1000000000000": "steps=1000000000000 must be at most 10000",
    "sweep nfes=1000000000000": "nfes=1000000000000 must be at most 10000",
    "sample nfe=1000000000000": "nfe=1000000000000 must be at most 10000",
    "sample images=1000000000000": "images=1000000000000 must be at most 4294967296",
    "sample seeds=0-1000000000000": "seeds= must be 0 to 4294967295",
    "sample batch=1000000000000": "batch=1000000000000 must be at most 65536",
    "sample sheet=-1": "sheet=-1 must be 0, for no sheet, to 65536",
    "sample -p ²": "-p ²: give a number of processes, or gpu",
    "sample -p 1000000000000": "give a number of processes, or gpu",
    f"sample nfe=1 out={'a' * 300}": "too long",
    "sample +x=3": "there is no key 'x'",
    "sample nfe=[1": "nfe=[1 cannot be read: put quotes around the value",
    "sample nfe='${x}'": "Interpolation key 'x' not found",
    "sample nfe='${nfe}'": "Recursive interpolation",
    "sample out='${oc.env:NOT_THERE}'": "Environment variable 'NOT_THERE' not found",
    "sample nfe=???": "give nfe=",
    "sample nfe=": "nfe= must be a whole number",
    "sample nfe=true": "nfe=True must be a whole number",
    "sample nfe=[1]": "nfe=[1] must be a whole number",
    "sample guidance=inf": "guidance=inf must be a finite number",
    "sample class=-inf": "class=-inf must be a whole number or null",
    "sample sampler=edm_churn sampler.S_max=nan": "sampler.S_max=nan must be a finite number",
    "sample +sampler.rule.order=2 sampler=ddim": "only its own keys can be changed",
    "sample metrics={a:1} score=true": "metrics={a:1} is not of the kind of its default",
    "edits x.png model=tiny-sd to=3": "it is one of edit: give it in settings='model=tiny-sd'",
    "reproduce demo model=sd15": "it is one of sample: give it in overrides='model=sd15'",
    "evaluate a b": "'b' is a second name, and images= takes one: quote a name that has spaces",
    "edits x.png to=3 methods=[a": "methods=[a is not a list",
    "sample sampler=deis_tab sampler.rule.order=9": "sampler.rule.order=9 must be 1, 2, 3 or 4",
    "sample sampler=deis_tab sampler.rule.clock=rhoo": "sampler.rule.clock='rhoo' is unknown",
    "sample sampler=plms sampler.order=9": "sampler.order=9 must be 1, 2, 3 or 4",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_get_one_sentence(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[words] in one_sentence(*shlex.split(words))


@pytest.mark.parametrize("text", ["a\0b", "\udcff\udcfe"])
@pytest.mark.parametrize("key", ["out", "prompts", "reference", "model.checkpoint", "prompt"])
def test_what_no_file_can_be_called_is_refused(key, text):
    with pytest.raises(UserError, match=f"{key}= holds a NUL or bytes that are not UTF-8"):
        settings("sample", [f"{key}={text}"])
