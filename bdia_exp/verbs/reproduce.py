"""`reproduce`: does the missing runs of an experiment, then draws its tables."""

import time
from dataclasses import dataclass
from pathlib import Path

from bdia_exp import dist
from bdia_exp.console import duration, positive, say
from bdia_exp.errors import UserError
from bdia_exp.jobs import experiments
from bdia_exp.jobs.asked import Compose, Overrides, folder_of
from bdia_exp.jobs.experiments import Run
from bdia_exp.jobs.pace import Pace
from bdia_exp.jobs.plan import Costs, Needs, absent, described, refused
from bdia_exp.overrides import split
from bdia_exp.store import records
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb
from bdia_exp.verbs.sample import sample
from bdia_exp.verbs.table import OfExperiment, TableDrawing, report_of, table


@dataclass(frozen=True, kw_only=True)
class Reproducing(OfExperiment):
    """Which part of an experiment to run, and overrides for every cell."""

    limit: int | None
    cells: str | int | None
    repeats: int | None
    batch: int | None
    device: str
    overrides: Overrides | None
    dry_run: bool
    tflops: float | None

    def check(self) -> None:
        super().check()
        for key in ("batch", "limit"):
            positive(key, getattr(self, key))
        positive("repeats", self.ranges, experiments.MOST_RANGES)
        if self.tflops is not None and not self.tflops > 0:
            raise UserError(f"tflops={self.tflops} must be more than 0")

    @property
    def images(self) -> int:
        """Images of a run."""
        full: int = self.experiment["images"]
        return min(self.limit or full, full)

    @property
    def ranges(self) -> int:
        """Seed ranges of a cell."""
        own: int = self.experiment.get("repeats", 1)
        return own if self.repeats is None else self.repeats

    @property
    def root(self) -> Path:
        """The folder of the tables and the cells."""
        name = self.experiment["name"]
        if self.images < self.experiment["images"]:
            name += f"-{self.images}"
        if more := split("overrides", self.overrides):
            name += f"-{records.digest({'overrides': more})}"
        return folder_of(self.out, name)

    @property
    def drawing(self) -> TableDrawing:
        """What draws the tables."""
        report = report_of(self.experiment, self.report)
        return TableDrawing(
            experiment=self.experiment, out=str(self.root), report=report, repeats=self.ranges
        )


def reproduce(asked: Reproducing, compose: Compose) -> Record:
    """Does the missing runs of an experiment, then draws its tables.

    Runs that cannot start on this machine are left out, and the others run.
    Raises UserError at the end with the reasons.
    """
    dist.start("cpu" if asked.dry_run else dist.device(asked.device))
    plan = plan_of(asked, compose)
    # Rank 0 decides for all, so every rank does the same runs in the same order.
    todo = dist.broadcast([i for i, run in enumerate(plan) if dist.rank() == 0 and not run.done])
    costs = Costs()
    tell_plan(asked, plan, todo, costs)
    if asked.dry_run:
        return {}

    without = lacking(plan, todo)
    _run([plan[i] for i in todo if i not in without], costs)
    drawn: Record = {}
    if len(without) < len(plan):
        drawn = table(asked.drawing)
    require_none(without, plan)
    return drawn


def tell_plan(asked: Reproducing, plan: list[Run], todo: list[int], costs: Costs) -> None:
    """Says what is to run; in a dry run also which files are missing, and what is refused."""
    pace = Pace.of(asked.tflops, dist.device_name_of(asked.device))
    say(described(asked.experiment["title"], plan, {*todo}, costs, pace))
    if asked.dry_run:
        for file in sorted({f for i in todo for f in absent(plan[i])}):
            say(f"  not here yet: {file}")
        for why in refused(plan[i] for i in todo):
            say(f"  refused: {why}")


def plan_of(asked: Reproducing, compose: Compose) -> list[Run]:
    """Every run of the chosen cells."""
    experiment = asked.experiment
    cells = experiments.cells_of(experiment, asked.root)
    return experiments.runs_of(
        experiments.chosen(cells, asked.cells, experiment["name"]),
        images=asked.images,
        starts=experiments.starts_of(experiment, asked.ranges),
        settings=[f"device={asked.device}", *([f"batch={asked.batch}"] if asked.batch else [])],
        defaults=experiment.get("settings", []),
        overrides=split("overrides", asked.overrides),
        compose=compose,
    )


def lacking(plan: list[Run], todo: list[int]) -> dict[int, list[str]]:
    """The runs that cannot start on some rank, and why."""
    needs = Needs()
    found: dict[int, list[str]] = {}
    for theirs in dist.gather({i: needs.lacking(plan[i]) for i in todo}):
        for i, why in theirs.items():
            if why:
                found[i] = [*found.get(i, []), *why]
    return found


def require_none(without: dict[int, list[str]], plan: list[Run]) -> None:
    """Raises UserError with the reasons if there are runs that `lacking` found."""
    if without:
        reasons = dict.fromkeys(why for whys in without.values() for why in whys)
        raise UserError(
            "\n  ".join([f"{len(without)} of {len(plan)} runs could not start:", *reasons])
        )


def _run(ready: list[Run], costs: Costs) -> None:
    """Does one run after another, and prints the estimated time left."""
    weights = [sum(costs.flops([run]) or (run.evaluations,)) for run in ready]
    began = time.perf_counter()
    for number, run in enumerate(ready):
        left = ""
        if spent := sum(weights[:number]):
            pace = (time.perf_counter() - began) / spent
            left = f", about {duration(pace * sum(weights[number:]))} left"
        say(f"[{number + 1}/{len(ready)}] {run.cell.name}, seeds {run.asked.seeds}{left}")
        sample(run.asked)
    if ready:
        say(f"all runs took {duration(time.perf_counter() - began)}")


VERB = Verb(reproduce, Reproducing, composes="sample")
