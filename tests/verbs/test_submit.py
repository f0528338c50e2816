"""submit: scripts that shellcheck accepts, frozen settings, jobs that stand-ins really run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bdia_exp.cli import configs, main
from bdia_exp.cli.words import expand
from bdia_exp.jobs.frozen import frozen
from bdia_exp.jobs.launchers import base as launchers
from tests.asking import one_sentence
from tests.verbs.running import QUICK, pngs

STANDINS = Path(__file__).parents[1] / "standins"
RUN = ["sample", *QUICK, "images=40"]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A machine with the stand-ins for SLURM; the folder of their jobs' states."""
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "slurm"
    state.mkdir()
    monkeypatch.setenv("STANDIN_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{STANDINS}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(STANDINS.parents[1]))
    return state


def submit(*words: str) -> str:
    done = CliRunner().invoke(main, ["submit", *words])
    assert done.exit_code == 0, done.output
    return done.output


def wait_for(path: Path, seconds: float = 120, lines: int = 0) -> None:
    deadline = time.time() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.time() < deadline, f"{path} did not come"
        time.sleep(0.05)


# -- the scripts ---------------------------------------------------------------------------------

SETTINGS = {
    "one": [],
    "nodes": ["launcher.nodes=2", "launcher.gpus=8", "launcher.cpus=16", "launcher.memory=64G"],
    "all": [
        *("launcher.partition=gpu", "launcher.account=me", "launcher.qos=low", "launcher.gpus=0"),
        *("launcher.constraint=a100|h100", "launcher.time=4:00:00", "launcher.requeue=false"),
        *("launcher.name=my job", 'launcher.extra=["--mail-type=FAIL"]', "launcher.processes=4"),
        'launcher.setup=["module load cuda/12", "source my env/bin/activate"]',
        "launcher.python=apptainer exec --nv image.sif python3",
    ],
    "parts": ["launcher.array=40", "launcher.at_once=8"],
    "local": ["launcher=local", "launcher.array=3"],
    "bash": ["launcher=bash", "launcher.processes=2", 'launcher.setup=["set -x"]'],
}


def scripts(shown: str) -> dict[str, str]:
    """The scripts that a dry run prints."""
    parts = [part.partition("\n") for part in shown.split("# ---- ")[1:]]
    return {Path(head).name: text for head, _, text in parts if head.endswith(".sh")}


@pytest.mark.parametrize("name", SETTINGS)
def test_shellcheck_accepts_every_script(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = scripts(submit(*RUN, "out=it's a run", "dry_run=true", *SETTINGS[name]))
    assert set(found) >= {"tasks.sh"}
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    for script, text in found.items():
        (tmp_path / script).write_text(text)
        checker = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
        done = subprocess.run([checker, script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert "@{" not in text


def test_the_options_of_slurm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = submit(*RUN, "out=run", "dry_run=true", *SETTINGS["all"])
    for option in (
        *("partition=gpu", "account=me", "qos=low", "constraint=a100|h100", "time=4:00:00"),
        *('job-name="my job"', "nodes=1", "signal=B:USR1@120", "open-mode=append", "no-requeue"),
        "mail-type=FAIL",
    ):
        assert f"\n#SBATCH --{option}\n" in shown
    assert "gpus-per-node" not in shown
    assert "scontrol" not in shown
    command = "apptainer exec --nv image.sif python3 -m bdia_exp sample --config"
    assert f"\n{command} run/submit/sample.yaml -p 4 &\n" in shown


def test_an_array_of_parts_and_their_merging(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = submit(*RUN, "out=run", "dry_run=true", *SETTINGS["parts"])
    found = scripts(shown)
    assert "\n#SBATCH --array=1-40%8\n" in found["tasks.sh"]
    assert ' --config run/submit/sample.yaml part="$task/40" &\n' in found["tasks.sh"]
    assert " merge run &\n" in found["last.sh"]
    assert "--array" not in found["last.sh"]
    assert "sbatch --parsable --dependency=afterany:JOB run/submit/last.sh\n" in shown


def test_several_nodes_meet_at_the_first_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = scripts(submit(*RUN, "out=run", "dry_run=true", *SETTINGS["nodes"]))["tasks.sh"]
    assert "\nsrun --ntasks-per-node=1 --kill-on-bad-exit=1 " in text
    assert ' -p 8 --nodes 2 --meet "$meet" &\n' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the first word after submit must be sample or reproduce"),
        (["evaluate", "runs"], "the first word after submit must be sample or reproduce"),
        (["sample", "nfe=4"], "no sbatch"),
        (["sample", "nef=4"], "there is no key 'nef'"),
        (["sample", "sampler=edm", "nfe=4", "launcher=bash", "out=a"], "nfe=4"),
        (["sample", "class=99", "launcher=bash", "out=a"], "class=99 is out of range"),
        (["sample", "sampler=bdai"], "did you mean"),
        (["sample", "launcher=slrum"], "did you mean 'slurm'?"),
        (["sample", "launcher.gpu=2"], "there is no key 'launcher.gpu'"),
        (["sample", "launcher.gpus=two"], "must be a whole number"),
        (["sample", "launcher.nodes=0"], "launcher.nodes=0 must be 1 or more"),
        (["reproduce", "demo", "launcher.array=3"], "launcher.array= is for sample"),
        (["sample", "save=zip", "launcher.array=3"], "give save=shards, not zip"),
        (["-m", "sample", "nfe=9,19"], "-m is not for submit"),
        (["sample", "out=a\nrm b", "launcher=bash"], "out=a\\nrm b: a scheduler cannot read"),
        (["sample", "out=a", "launcher.setup=['a\nb']"], "must be text on one line"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert said in one_sentence("submit", *words)


def test_several_machines_need_a_place_to_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "go with -p" in one_sentence("sample", "--nodes", "2")
    assert "needs --meet HOST:PORT" in one_sentence("sample", "-p", "2", "--nodes", "2")


# -- frozen settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["sampler=ddim", "grid=uniform", "nfe=7", "seeds=0-9,20", "class=3", "score=true"],
        ["model=mini_sd", "sampler=ddim", "prompt=it costs ${money}: yes", "metrics=[fid,kid]"],
        ["sampler=edm_churn", "sampler.S_churn=1e-3", "diffusion=own", "out=2024"],
    ],
)
def test_frozen_settings_are_those_that_were_composed(words, tmp_path, monkeypatch):
    (overrides,) = expand("sample", tuple(words), multirun=False)
    asked = configs.settings("sample", overrides)
    file = tmp_path / "sample.yaml"
    file.write_text(frozen("sample", asked))
    monkeypatch.setattr(configs, "composed", None)  # nothing is composed again
    again = configs.settings("sample", [], str(file))
    assert again.plain() == asked.plain()
    assert frozen("sample", again) == file.read_text()
    changed = configs.settings("sample", ["nfe=9", "sheet=0"], str(file))
    assert changed.plain() == {**asked.plain(), "nfe": 9, "sheet": 0}


def test_frozen_settings_that_cannot_be_used(tmp_path, monkeypatch):
    folder, empty = tmp_path / "files", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    monkeypatch.chdir(empty)
    file = folder / "a.yaml"
    text = frozen("sample", configs.settings("sample", []))

    def said(text: str, *words: str, command: str = "sample") -> str:
        file.write_text(text)
        return one_sentence(command, "--config", str(file), *words)

    assert "sampler= is fixed by" in said(text, "sampler=ddim")
    assert "there is no key 'sampler.gama'" in said(text, "sampler.gama=1")
    assert "cannot be read" in said(text, "metrics=[fid")
    assert "is for sample, not for table" in said(text, command="table")
    assert "is not a file that `bdia-exp submit` wrote" in said("[1, 2]")
    assert "is damaged" in said("a: [")
    assert "it has no images, seeds, out and 3 more" in said(text.partition("class:")[0])
    assert "no other is called" in said(text.replace("bdia_exp.samplers.loops.heun", "os.system"))
    assert "No such file" in one_sentence("sample", "--config", "nothing.yaml")


# -- the jobs ------------------------------------------------------------------------------------


def test_reproduce_is_an_array_and_then_a_table(slurm):
    words = ["reproduce", "demo", "limit=70", "cells=: EDM at 9", "device=cpu", "out=t"]
    assert "submitted job 100, then job 101" in submit(*words, "launcher.gpus=0")
    refused = CliRunner().invoke(main, ["submit", *words])
    assert "jobs of t are in the queue (100 101)" in refused.output
    wait_for(slurm / "101.done")
    assert json.loads((slurm / "100.statuses").read_text()) == [0]
    cells = json.loads(Path("t/tables.json").read_text())["tables"][0]["cells"]
    assert [(cell["row"], cell["column"]) for cell in cells] == [("EDM", "9")]
    assert "| EDM |" in Path("t/submit/logs/bdia-t-last-101.log").read_text()
    assert "every run of t is there" in submit(*words)


def test_an_array_of_parts_is_merged_to_what_one_run_makes(slurm):
    words = ["model=toy", "nfe=9", "images=100", "device=cpu", "shard=30", "sheet=9"]
    submit("sample", *words, "out=parts", "launcher.array=3", "launcher.gpus=0")
    wait_for(slurm / "101.done")
    assert json.loads((slurm / "100.statuses").read_text()) == [0, 0, 0]
    assert json.loads((slurm / "101.statuses").read_text()) == [0]
    (overrides,) = expand("sample", (*words, "save=shards", "out=one"), multirun=False)
    configs.call("sample", overrides)
    for name in ("shards.csv", "sheet.png"):
        assert Path("parts", name).read_bytes() == Path("one", name).read_bytes()
    assert json.loads(Path("parts/record.json").read_text())["complete"]


BRIEF = """
echo "$*" >> log
[[ $* != *part=2/3* || -e again ]] || {
    trap 'touch again; exit 138' USR1
    touch started
    while true; do sleep 0.05; done
}
[[ $* != *part=1/3* ]] || exit 1
"""


def test_a_task_of_an_array_that_fails_or_is_put_back(slurm):
    """One fails, and the others and the last job run; one is put back, alone."""
    Path("fake.sh").write_text(BRIEF)
    words = ["out=run", "launcher.array=3", "launcher.python=bash fake.sh"]
    submit(*RUN, *words)
    wait_for(Path("started"))
    os.kill(int((slurm / "100_2.pid").read_text()), signal.SIGUSR1)
    wait_for(slurm / "101.done")
    assert json.loads((slurm / "100.statuses").read_text()) == [1, 0, 0]
    done = [line.split()[-1] for line in Path("log").read_text().splitlines()]
    assert done == ["part=1/3", "part=2/3", "part=2/3", "part=3/3", "run"]


def test_a_job_that_is_told_to_stop_is_put_back_and_goes_on(slurm, whole):
    submit(*RUN, "batch=4", "out=run", "launcher.gpus=0", "launcher.processes=2")
    wait_for(Path("run/images/000000/000001.png"))
    os.kill(int((slurm / "100.pid").read_text()), signal.SIGUSR1)
    wait_for(slurm / "100.done")
    assert json.loads((slurm / "100.statuses").read_text()) == [0]
    assert pngs(Path("run")) == pngs(whole)
    log = Path("run/submit/logs/bdia-run-100.log").read_text()
    assert log.count("stopped by SIGUSR1; run the same command again to continue") == 1
    assert not list(Path("run").rglob("*.part"))
    assert "run: 40 images" in log
    assert 0 < json.loads(Path("run/record.json").read_text())["sampled"] < 40
    assert "run is complete: nothing to submit" in submit(*RUN, "batch=4", "out=run")


ENDLESS = """
trap 'exit 138' USR1
echo $$ >> started
while true; do sleep 0.05; done
"""


def test_a_job_is_put_back_a_limited_number_of_times(slurm):
    """A time limit that is too short for any image would cost computing time without end."""
    Path("fake.sh").write_text(ENDLESS)
    submit(*RUN, "out=run", "launcher.restarts=2", "launcher.python=bash fake.sh")
    told: list[str] = []
    for start in (1, 2, 3):
        wait_for(Path("started"), lines=start)
        while (process := (slurm / "100.pid").read_text()) in told:
            time.sleep(0.01)
        os.kill(int(process), signal.SIGUSR1)
        told.append(process)
    wait_for(slurm / "100.done")
    assert json.loads((slurm / "100.statuses").read_text()) == [138]
    log = Path("run/submit/logs/bdia-run-100.log").read_text()
    assert log.count("put back into the queue 2 times already, and now no more") == 1


def test_two_nodes_share_a_run(slurm, whole):
    submit(*RUN, "out=run", "launcher.nodes=2", "launcher.gpus=0")
    wait_for(slurm / "100.done")
    log = Path("run/submit/logs/bdia-run-100.log").read_text()
    assert json.loads((slurm / "100.statuses").read_text()) == [0], log
    assert json.loads(Path("run/record.json").read_text())["processes"] == 2
    assert pngs(Path("run")) == pngs(whole)


def test_sbatch_that_refuses(slurm):
    done = CliRunner().invoke(main, ["submit", *RUN, "out=run", "launcher.partition=closed"])
    assert done.exit_code == 1
    assert "sbatch refused the job" in done.output
    assert "Invalid partition name" in done.output


# -- here ----------------------------------------------------------------------------------------

FAKE = """
echo "$*" >> log
case $* in *=2/3*) exit 3 ;; *merge*) exit 0 ;; esac
"""


@pytest.mark.parametrize("at_once", [1, 3])
def test_local_runs_all_tasks_then_the_last_one(at_once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fake.sh").write_text(FAKE)
    words = ["launcher=local", "launcher.array=3", f"launcher.at_once={at_once}"]
    done = CliRunner().invoke(
        main, ["submit", *RUN, "out=run", *words, "launcher.python=bash fake.sh"]
    )
    assert done.exit_code == 1
    assert "1 of the scripts failed: `bash run/submit/tasks.sh 2` (exit status 3)" in done.output
    *tasks, last = Path("log").read_text().splitlines()
    command = "-m bdia_exp sample --config run/submit/sample.yaml part="
    assert sorted(tasks) == [f"{command}{i}/3" for i in (1, 2, 3)]
    assert last == "-m bdia_exp merge run"


WAITS = """
trap 'echo stopped > stopped; exit 143' TERM
touch started
while true; do sleep 0.05; done
"""


def test_local_stops_its_scripts_when_it_is_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fake.sh").write_text(WAITS)
    words = ["submit", *RUN, "out=run", "launcher=local", "launcher.python=bash fake.sh"]
    path = {"PYTHONPATH": str(STANDINS.parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "bdia_exp", *words], env={**os.environ, **path}
    )
    wait_for(Path("started"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert Path("stopped").exists()


STUBBORN = """
trap 'sleep 0.3; exit 0' USR1
touch started
while true; do sleep 0.05; done
"""


def test_a_script_waits_for_work_that_ends_well_after_a_signal(tmp_path, monkeypatch):
    """Then the job is done and not put back, and the script tells so by its status."""
    monkeypatch.chdir(tmp_path)
    Path("fake.sh").write_text(STUBBORN)
    shown = submit(*RUN, "out=run", "dry_run=true", "launcher.python=bash fake.sh")
    Path(launchers.TASKS).write_text(scripts(shown)[launchers.TASKS])
    process = subprocess.Popen(["bash", launchers.TASKS])
    wait_for(Path("started"))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0


def test_bash_prints_the_script_that_it_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = submit(*RUN, "out=run", "launcher=bash")
    assert Path("run/submit/tasks.sh").read_text() in shown
    assert "#SBATCH" not in shown


def test_a_dry_run_fits_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    words = ["sampler=iia_edm", "model=edm_ffhq", "nfe=9", "dry_run=true", "launcher=bash"]
    shown = submit("sample", *words)
    assert "--config RUN/submit/sample.yaml" in shown
    assert not list(tmp_path.iterdir())


def test_dry_run_is_also_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["submit", *RUN, "out=run"]
    one, other = (
        CliRunner().invoke(main, [*words, how]).output for how in ("--dry-run", "dry_run=true")
    )
    assert "# ---- run/submit/tasks.sh" in one
    assert one == other
    assert not Path("run").exists()
    assert "No such option" in CliRunner().invoke(main, ["status", "--dry-run", "x"]).output
