"""SLURM: the headers of scripts, and `sbatch`. The only module that knows them."""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bdia_exp.console import positive, say
from bdia_exp.errors import UserError, brief
from bdia_exp.jobs.launchers.base import LAST, TASKS, Launcher, Work, filled
from bdia_exp.store import records

JOBS = "jobs.json"
"""The file with the numbers of the jobs of the last submission."""


@dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """Jobs of SLURM: an array of tasks, and a last job that waits for it."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | int | None = None
    nodes: int = 1
    gpus: int = 1
    cpus: int | None = None
    memory: str | int | None = None
    requeue: bool = True
    restarts: int = 20
    signal: int = 120
    name: str | None = None
    logs: str | None = None
    extra: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("nodes", "cpus", "signal", "restarts"):
            positive(f"launcher.{key}", getattr(self, key))
        if self.gpus < 0:
            raise UserError(f"launcher.gpus={self.gpus} must be 0 or more")

    @property
    def on_each_node(self) -> int:
        return self.processes or max(self.gpus, 1)

    @property
    def machines(self) -> int:
        return self.nodes

    def logs_of(self, work: Work) -> Path:
        """The folder of the jobs' output."""
        return Path(self.logs).expanduser() if self.logs else work.folder / "logs"

    def header(self, work: Work, last: bool) -> list[str]:
        """The options of `sbatch`. The last job takes one node, and at most one GPU."""
        tasks = None if last else work.tasks
        at_once = f"%{self.at_once}" if self.at_once else ""
        name = self.name or "bdia-" + re.sub(r"[^\w.=+-]+", "_", work.folder.parent.name)
        log = "%x-%A_%a.log" if tasks else "%x-%j.log"
        options = {
            "job-name": f"{name}-last" if last else name,
            "output": self.logs_of(work).absolute() / log,
            "open-mode": "append",
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.time,
            "nodes": 1 if last else self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": (min(self.gpus, 1) if last else self.gpus) or None,
            "cpus-per-task": self.cpus,
            "mem": self.memory,
            "array": f"1-{tasks}{at_once}" if tasks else None,
            "signal": f"B:USR1@{self.signal}",
        }
        lines = [f"--{key}={_word(value)}" for key, value in options.items() if value is not None]
        lines.append("--requeue" if self.requeue else "--no-requeue")
        return [f"#SBATCH {line}" for line in [*lines, *map(str, self.extra)]]

    def requeued(self) -> str:
        return filled("requeue.sh", restarts=self.restarts) if self.requeue else ""

    def commands(self, work: Work) -> list[str]:
        found = [shlex.join(_sbatch(work, TASKS))]
        if work.last:
            found.append(shlex.join(_sbatch(work, LAST, "afterany:JOB")))
        return found

    def require(self) -> None:
        if not shutil.which("sbatch"):
            raise UserError(
                "this machine has no sbatch: submit on a login node, or give launcher=local (runs "
                "here) or launcher=bash (prints the script)"
            )

    def check(self, work: Work) -> None:
        """Raises UserError if jobs of this folder are in the queue."""
        jobs = records.load(work.folder / JOBS) or {}
        if jobs and shutil.which("squeue"):
            numbers = ",".join(map(str, jobs.values()))
            command = ["squeue", "--noheader", "--format=%i", f"--jobs={numbers}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0 and (busy := " ".join(done.stdout.split())):
                raise UserError(
                    f"jobs of {work.folder.parent} are in the queue ({brief(busy)}): wait "
                    f"for them, or first `scancel {numbers.replace(',', ' ')}`"
                )

    def start(self, work: Work) -> None:
        """Submits the array, then the job that waits for all of it, also for what failed."""
        self.logs_of(work).mkdir(parents=True, exist_ok=True)
        jobs = {"tasks": _submitted(_sbatch(work, TASKS))}
        records.save(work.folder / JOBS, jobs)
        if work.last:
            after = f"afterany:{jobs['tasks']}"
            try:
                jobs["last"] = _submitted(_sbatch(work, LAST, after))
            except UserError as error:
                raise UserError(
                    f"job {jobs['tasks']} is submitted, but not the last job ({error}): submit it "
                    f"with {shlex.join(_sbatch(work, LAST, after))}"
                ) from None
            records.save(work.folder / JOBS, jobs)
        then = f", then job {jobs['last']}" if work.last else ""
        say(f"submitted job {jobs['tasks']}{then}; output in {self.logs_of(work)}")


def _word(value: object) -> str:
    """A value as `sbatch` reads it in a script."""
    text = str(value)
    return f'"{text}"' if any(sign.isspace() for sign in text) else text


def _sbatch(work: Work, script: str, after: str | None = None) -> list[str]:
    wait = [f"--dependency={after}"] if after else []
    return ["sbatch", "--parsable", *wait, str(work.folder / script)]


def _submitted(command: list[str]) -> str:
    """The number of the job that `sbatch` made. Raises UserError if it refuses."""
    done = subprocess.run(command, capture_output=True, text=True)
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdecimal():
        why = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise UserError(f"sbatch refused the job: {brief(why, 300)}")
    return number
