"""`sweep`: FID over γ, NFE and samplers, as an experiment that is written on the spot."""

from pathlib import Path

from bdia_exp import dist, figures, run, store, tables
from bdia_exp.console import positive, say
from bdia_exp.errors import UserError
from bdia_exp.results import Record
from bdia_exp.schedules import linear_vp
from bdia_exp.solvers import grid_for
from bdia_exp.studies.cells import Compose, entries, numbers, whole_numbers


def sweep(
    *,
    models: list | str,
    samplers: list | str,
    gammas: list | str | float,
    nfes: list | str | int,
    images: int,
    batch: int,
    device: str,
    out: str | None,
    dry_run: bool,
    compose: Compose,
) -> Record:
    """Runs the missing cells with `run.reproduce`, then draws them; returns the tables.

    Raises UserError for a γ that no sampler takes, and for an NFE below what one can spend.
    """
    positive("images", images)
    for gamma in numbers("gammas", gammas):
        if not 0 <= gamma <= 1:
            raise UserError(f"gammas={gamma:g} must be 0 to 1: 0 is the base method")
    wanted = sorted(whole_numbers("nfes", nfes))
    experiment: Record = {
        "name": f"sweep-{images}",
        "title": "FID over γ and NFE",
        "images": images,
        "tables": [],
    }
    notes = []
    chosen_models = entries("models", models, "model")
    for model, of_model in chosen_models.items():
        for sampler, of_sampler in entries(
            "samplers", samplers, "sampler", within=("grid",)
        ).items():
            common = [*of_model, *of_sampler]
            spent = {nfe: affordable(nfe, common, compose) for nfe in wanted}
            name = sampler if len(chosen_models) == 1 else f"{model}, {sampler}"
            experiment["tables"].append(
                {
                    "name": name,
                    "title": name,
                    "axis": "NFE",
                    "common": common,
                    "rows": {f"γ={g:g}": [f"sampler.gamma={g}"] for g in numbers("gammas", gammas)},
                    "columns": {str(nfe): [f"nfe={nfe}"] for nfe in spent.values()},
                }
            )
            if changed := [f"{nfe} → {used}" for nfe, used in spent.items() if nfe != used]:
                notes.append(f"{name} cannot spend every NFE, so it ran at: {', '.join(changed)}.")
    for note in notes:
        say(note)
    root = Path(out).expanduser() if out else Path("runs") / experiment["name"]
    drawn = run.reproduce(
        experiment=experiment,
        out=str(root),
        limit=None,
        cells=None,
        repeats=1,
        report=None,
        batch=batch,
        device=device,
        overrides=None,
        dry_run=dry_run,
        tflops=30.0,
        compose=compose,
    )
    if drawn and dist.rank() == 0:
        figures.heat_maps(drawn, root / "sweep.png")
        store.write_text(root / "sweep.md", _markdown(drawn, notes))
        say(f"written to {root}: sweep.md, sweep.png")
    return drawn


def affordable(nfe: int, overrides: list[str], compose: Compose) -> int:
    """The most evaluations up to `nfe` that the sampler of these overrides can spend exactly."""
    arguments = compose(overrides)
    grid, schedule = arguments["grid"], linear_vp()  # no cost depends on the schedule
    for fewer in range(nfe, 0, -1):
        try:
            grid_for(arguments["sampler"], lambda steps: grid(steps, schedule), fewer)
            return fewer
        except UserError as error:
            refusal = error
    raise refusal


def _markdown(drawn: Record, notes: list[str]) -> str:
    """The tables, with the best γ of every column in a sentence."""
    text = tables.markdown(drawn)
    best = []
    for table in drawn["tables"]:
        for column in table["columns"]:
            cells = [cell for cell in table["cells"] if cell["column"] == column]
            if cells:
                least = min(cells, key=lambda cell: cell["fid"])
                best.append(f"- {table['name']} at NFE {column}: {least['row']}")
    parts = [text.strip(), *notes, "The least FID of each column is at:", "\n".join(best)]
    return "\n\n".join([*parts, "![FID over γ and NFE](sweep.png)"]) + "\n"
