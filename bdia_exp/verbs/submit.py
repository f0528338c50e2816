"""`submit`: runs a command on a cluster, from settings that are composed once and frozen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import cast

from bdia_exp import dist
from bdia_exp.console import say
from bdia_exp.errors import UserError
from bdia_exp.jobs import sharding
from bdia_exp.jobs.asked import Asked, Choice, Compose
from bdia_exp.jobs.claims import claim
from bdia_exp.jobs.finished import finished
from bdia_exp.jobs.fits.fitting import ensure
from bdia_exp.jobs.frozen import frozen
from bdia_exp.jobs.identity import identity_of
from bdia_exp.jobs.launchers.base import Launcher, Work
from bdia_exp.jobs.plan import Costs
from bdia_exp.jobs.sampling import require_possible
from bdia_exp.jobs.settings import Sampling
from bdia_exp.overrides import key_of
from bdia_exp.store.files import write_text
from bdia_exp.verbs import Verb
from bdia_exp.verbs.reproduce import Reproducing, lacking, plan_of, require_none, tell_plan

ComposeAny = Callable[[str, list[str]], Asked]
"""A function from a command and its overrides to its settings."""
FOLDER = "submit"
"""The folder in that of a run, for the scripts, the frozen settings and the logs."""


@dataclass(frozen=True, kw_only=True)
class Submitting(Asked):
    """A command with its own overrides, and where it runs."""

    command: list
    launcher: Choice[Callable[..., Launcher]]
    dry_run: bool


@dataclass(frozen=True)
class _Job:
    """The work, its frozen settings (file name → text), and the check of what cannot start."""

    work: Work
    configs: dict[str, str]
    complain: Callable[[], None] = lambda: None


def submit(asked: Submitting, compose: ComposeAny) -> None:
    """Writes the scripts and the frozen settings of a command, and starts them.

    Raises UserError if the command's overrides are wrong, before anything is written.
    """
    launcher = asked.launcher.make()
    make = _asked(asked, launcher, compose)
    if not asked.dry_run:
        launcher.require()
    job = make()
    if job is None:
        return
    work, scripts = job.work, launcher.scripts(job.work)
    if asked.dry_run:
        for name, text in scripts.items():
            say(f"# ---- {work.folder / name}\n{text}")
        say("\n".join(["# ---- the commands", *launcher.commands(work)]))
        return
    launcher.check(work)
    for name, text in {**job.configs, **scripts}.items():
        write_text(work.folder / name, text)
    launcher.start(work)
    job.complain()


def _asked(asked: Submitting, launcher: Launcher, compose: ComposeAny) -> Callable[[], _Job | None]:
    """Checks the command's own words. What it returns finds out what is to be submitted."""
    name, *words = asked.command
    if name == "reproduce":
        if launcher.array:
            raise UserError("launcher.array= is for sample: reproduce has a task for each run")
        tables = cast(Reproducing, compose(name, [*words, f"dry_run={asked.dry_run}"]))
        return partial(_of_tables, tables, cast(Compose, partial(compose, "sample")))
    if launcher.array:
        words = words if "save" in map(key_of, words) else [*words, "save=shards"]
        compose(name, [*words, f"part='1/{launcher.array}'"])  # refused here, not in every task
    return partial(_of_run, cast(Sampling, compose(name, words)), launcher.array, asked.dry_run)


def _of_run(asked: Sampling, parts: int | None, dry_run: bool) -> _Job | None:
    """One run of `sample`: one task, or an array of parts and then their merging.

    None if it is complete.
    """
    require_possible(asked)
    root = Path(asked.out or "RUN").expanduser()  # RUN: only in a dry run
    if not dry_run:
        ensure(asked, dist.device("auto"), asked.batch)
        run = claim(asked, lambda then: identity_of(asked, then, seeds=asked.seeds_text))
        if finished(sharding.settled(asked, run.root, run.before), run):
            say(f"{run.root} is complete: nothing to submit")
            return None
        root = run.root
    folder = root / FOLDER
    command = f"sample --config {quote(str(folder / 'sample.yaml'))}"
    work = Work(
        title=f"sample, {root}",
        folder=folder,
        command=f'{command} part="$task/{parts}"' if parts else command,
        tasks=parts,
        last=f"merge {quote(str(root))}" if parts else None,
    )
    return _Job(work, {"sample.yaml": frozen("sample", replace(asked, out=str(root)))})


def _of_tables(asked: Reproducing, compose: Compose) -> _Job | None:
    """The missing runs of an experiment, a task for each, and then the drawing of its tables.

    None if no run is missing.
    """
    plan = plan_of(asked, compose)
    todo = [i for i, run in enumerate(plan) if not run.done]
    tell_plan(asked, plan, todo, Costs())
    without = {} if asked.dry_run else lacking(plan, todo)
    ready = [plan[i].asked for i in todo if i not in without]
    if not ready:
        require_none(without, plan)
        say(f"every run of {asked.root} is there: draw the tables with `bdia-exp table`")
        return None
    if not asked.dry_run:
        for one in ready:
            ensure(one, dist.device("auto"), one.batch)
    folder = asked.root / FOLDER
    work = Work(
        title=f"reproduce {asked.experiment['name']}, {asked.root}",
        folder=folder,
        command=f'sample --config {quote(str(folder))}/"$task".yaml',
        tasks=len(ready),
        last=f"table --config {quote(str(folder / 'table.yaml'))}",
    )
    configs = {f"{i}.yaml": frozen("sample", one) for i, one in enumerate(ready, 1)}
    configs["table.yaml"] = frozen("table", asked.drawing)
    return _Job(work, configs, partial(require_none, without, plan))


VERB = Verb(submit, Submitting, submits=("sample", "reproduce"))
