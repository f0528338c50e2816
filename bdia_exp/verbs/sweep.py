"""`sweep`: FID over γ, NFE and samplers, as an experiment made from these lists."""

from dataclasses import dataclass
from functools import partial
from itertools import product

from bdia_exp import dist, seeds
from bdia_exp.console import positive, say
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked, Compose, folder_of
from bdia_exp.jobs.coefficients import bare
from bdia_exp.overrides import entries, exactly, numbers, whole_numbers
from bdia_exp.report import figures
from bdia_exp.report import tables as drawing
from bdia_exp.samplers.cost import MOST, affordable
from bdia_exp.samplers.schedules import linear_vp
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb
from bdia_exp.verbs.reproduce import Reproducing, reproduce


@dataclass(frozen=True, kw_only=True)
class Sweeping(Asked):
    """Models, samplers, γs and NFEs."""

    models: list | str
    samplers: list | str
    gammas: list | str | float
    nfes: list | str | float
    images: int
    batch: int
    device: str
    out: str | None
    dry_run: bool

    def check(self) -> None:
        super().check()
        positive("images", self.images, seeds.MOST)
        for gamma in numbers("gammas", self.gammas):
            if not 0 <= gamma <= 1:
                raise UserError(f"gammas={gamma:g} must be 0 to 1: 0 is the base method")


def sweep(asked: Sweeping, compose: Compose) -> Record:
    """Runs the missing cells with `reproduce`, then draws them; returns the tables.

    Raises UserError for a γ that no sampler takes, and for an NFE below a sampler's minimum.
    """
    dist.start("cpu" if asked.dry_run else dist.device(asked.device))
    experiment, notes = _experiment(asked, compose)
    for note in notes:
        say(note)
    root = folder_of(asked.out, experiment["name"])
    cells = Reproducing(
        experiment=experiment,
        out=str(root),
        limit=None,
        cells=None,
        repeats=1,
        report=None,
        batch=asked.batch,
        device=asked.device,
        overrides=None,
        dry_run=asked.dry_run,
        tflops=None,
    )
    drawn = reproduce(cells, compose)
    if drawn and dist.rank() == 0:
        figures.heat_maps(drawn, root / "sweep.png")
        write_text(root / "sweep.md", _markdown(drawn, notes))
        say(f"written to {root}: sweep.md, sweep.png")
    return drawn


def _experiment(asked: Sweeping, compose: Compose) -> tuple[Record, list[str]]:
    """A table of γ over NFE for every model and sampler; and sentences on the changed NFEs."""
    wanted = sorted(whole_numbers("nfes", asked.nfes, MOST))
    gammas = numbers("gammas", asked.gammas)
    tables, notes = [], []
    models = entries("models", asked.models, "model")
    samplers = entries("samplers", asked.samplers, "sampler", within=("grid",))
    for (model, of_model), (sampler, of_sampler) in product(models.items(), samplers.items()):
        common = [*of_model, *of_sampler]
        asked_of = compose(common)
        if "gamma" not in asked_of.sampler.config:
            raise UserError(f"samplers: {sampler} has no γ (no key sampler.gamma): leave it out")
        # No cost depends on the schedule.
        grid = partial(asked_of.grid.make, schedule=linear_vp())
        spent = {nfe: affordable(bare(asked_of.sampler), grid, nfe)[1] for nfe in wanted}
        name = sampler if len(models) == 1 else f"{model}, {sampler}"
        tables.append(
            {
                "name": name,
                "title": name,
                "axis": "NFE",
                "common": common,
                "rows": {f"γ={exactly(g)}": [f"sampler.gamma={g}"] for g in gammas},
                "columns": {str(nfe): [f"nfe={nfe}"] for nfe in spent.values()},
            }
        )
        if changed := [f"{nfe} → {used}" for nfe, used in spent.items() if nfe != used]:
            notes.append(f"{name} cannot spend every NFE, so it ran at: {', '.join(changed)}.")
    experiment = {
        "name": f"sweep-{asked.images}",
        "title": "FID over γ and NFE",
        "images": asked.images,
        "tables": tables,
    }
    return experiment, notes


def _markdown(drawn: Record, notes: list[str]) -> str:
    """The tables, and a list of the best γ of every column."""
    text = drawing.markdown(drawn)
    best = []
    for table in drawn["tables"]:
        for column in table["columns"]:
            cells = [cell for cell in table["cells"] if cell["column"] == column]
            if cells:
                least = min(cells, key=lambda cell: cell["fid"])
                best.append(f"- {table['name']} at NFE {column}: {least['row']}")
    parts = [text.strip(), *notes, "The least FID of each column is at:", "\n".join(best)]
    return "\n\n".join([*parts, "![FID over γ and NFE](sweep.png)"]) + "\n"


VERB = Verb(sweep, Sweeping, composes="sample")
