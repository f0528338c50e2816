"""`table`: draws an experiment's tables, plot and sheet from the records that exist."""

from dataclasses import dataclass

from bdia_exp import dist
from bdia_exp.console import one_of, positive, say
from bdia_exp.errors import UserError
from bdia_exp.jobs import experiments
from bdia_exp.jobs.asked import Asked, folder_of
from bdia_exp.report import fids, figures, tables
from bdia_exp.report.cells import collect
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


@dataclass(frozen=True, kw_only=True)
class OfExperiment(Asked):
    """An experiment, and where its records are."""

    experiment: Record
    out: str | None
    report: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "experiment", experiments.checked(self.experiment))
        super().__post_init__()

    def check(self) -> None:
        super().check()
        report_of(self.experiment, self.report)


@dataclass(frozen=True, kw_only=True)
class TableDrawing(OfExperiment):
    """Which runs of an experiment are shown."""

    repeats: int | None = None

    def check(self) -> None:
        super().check()
        positive("repeats", self.repeats, experiments.MOST_RANGES)

    @property
    def starts(self) -> range | None:
        """The first seeds of the runs that are shown; None: of all."""
        if self.repeats is None:
            return None
        return experiments.starts_of(self.experiment, self.repeats)


def report_of(experiment: Record, report: str | None) -> str:
    """How a cell combines several runs: `report` if given, else the experiment's own choice."""
    report = experiment.get("report", "mean") if report is None else report
    one_of("report", report, list(tables.REPORTS))
    return report


def table(asked: TableDrawing) -> Record:
    """Draws an experiment's tables, plot and sheet from its records, and prints the tables."""
    experiment = asked.experiment
    root = folder_of(asked.out, experiment["name"])
    cells = experiments.cells_of(experiment, root)
    scored = {
        (c.table, c.row, c.column): found for c in cells if (found := c.records(asked.starts))
    }
    if not scored:
        raise UserError(
            f"{root} holds no records of {experiment['name']}: run `bdia-exp reproduce "
            f"{experiment['name']}` first, or give out="
        )
    drawn = collect(experiment, scored, report_of(experiment, asked.report))
    if dist.rank() == 0:
        text = tables.markdown(drawn)
        write_text(root / "tables.md", text)
        records.save(root / "tables.json", drawn)
        fids.fid_curves(drawn, root / "fid.png")
        written = "tables.md, tables.json, fid.png"
        sheets = {c.name: c.root / "sheet.png" for c in cells}
        if any(file.exists() for file in sheets.values()):  # records may be kept without pictures
            figures.side_by_side(sheets, root / "samples.png")
            written += ", samples.png"
        say(f"\n{text}\nwritten to {root}: {written}")
    return drawn


VERB = Verb(table, TableDrawing)
