"""`fit`: finds the coefficients of a sampler for one model and number of evaluations."""

from dataclasses import dataclass
from pathlib import Path

from bdia_exp import dist
from bdia_exp.jobs.fits import fitting
from bdia_exp.jobs.fits.options import FitOptions, key_of, usual
from bdia_exp.jobs.identity import compared_by, fitted_for, identity_of, plainly
from bdia_exp.jobs.settings import Comparing, Computing, Drawing
from bdia_exp.report import curves
from bdia_exp.report.markdown import markdown_table, publish, short
from bdia_exp.store import records
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder
from bdia_exp.verbs import Verb

FILE = "coefficients.json"
STATES = ("base", "fitted")


@dataclass(frozen=True, kw_only=True)
class Fitting(Drawing, Comparing, Computing):
    """The sampler, its model and grid, and how its coefficients are fitted."""

    fit: FitOptions
    out: str | None

    def check(self) -> None:
        super().check()
        key_of(self.sampler.make)

    @property
    def options(self) -> FitOptions:
        """What was given, and the usual options of this sampler for the rest."""
        given = {key: value for key, value in vars(self.fit).items() if value is not None}
        return FitOptions(**{**vars(usual(self.sampler.make)), **given})


def fit(asked: Fitting) -> Record:
    """Fits, and writes coefficients.json with a record, a table and a figure. Returns the record.

    Raises UserError if the folder holds other coefficients, or files of these names without a
    record.
    """
    device = dist.device(asked.device)
    identity = _identity(asked)
    root = Path(asked.out).expanduser() if asked.out else _folder(asked, identity)
    run = RunFolder(root)
    if run.before:
        records.require_same(root, plainly(run.before.get("identity", {})), identity)
    run.require_ours(FILE, "fit.json", "fit.md", "fit.png")
    run.identity = identity
    found = fitting.made(asked, device, asked.batch, asked.options)
    run.begin({"command": "fit", "device": dist.device_name(device)}, asked.plain())
    records.save(root / FILE, found)
    record = run.finish(found)
    publish(root, "fit", record, _markdown(asked, root, found), curves.coefficients)
    return record


def _identity(asked: Fitting) -> Record:
    """What decides the coefficients: what decides an image, and how they are fitted."""
    drawing = identity_of(asked, {})
    drawing.pop("coefficients_sha256", None)
    more: Record = {"fit": vars(asked.options)}
    if asked.options.target == "features":
        more |= compared_by(asked)
    return plainly(drawing | fitted_for(asked) | more)


def _folder(asked: Fitting, identity: Record) -> Path:
    name = f"fit-{asked.sampler.name}-nfe{asked.nfe}-{records.digest(identity)}"
    return Path("runs") / asked.model.name / name


def _markdown(asked: Fitting, root: Path, found: Record) -> str:
    """The coefficients and residuals of each step, and the errors at the end."""
    how, held = found["fit"], found["held_out_residuals"]
    key, levels = how["argument"], found["for"]["levels"]
    names, first = curves.names_of(found), curves.first_of(found)
    heads = ["step", "σ/α", *names, "residual of the base", "fitted", "held out: base", "fitted"]
    rows = []
    for place, row in enumerate(found["coefficients"]):
        alpha, sigma, _ = levels[place + first]
        numbers = [f"{weight:.4g}" for weight in row]
        numbers += ["–"] * (len(names) - len(row))
        four = [
            short(side[state][place])
            for side in (found["residuals"], held)
            for state in ("before", "after")
        ]
        at = f"{sigma / alpha:.4g}" if alpha else "∞"
        rows.append([str(place + first), at, *numbers, *four])
    parts = [
        f"# Coefficients of {asked.sampler.name} at NFE {asked.nfe}, {asked.model.name}",
        f"Fitted on the noises of seeds {how['seeds']}, target {how['target']}; held out: seeds "
        f"{how['held_out_seeds']}. The fit made {how['evaluations_per_noise']} evaluations per "
        f"noise; sampling makes {asked.nfe}, as without a fit. Residuals are the RMS distance of a "
        "step's end from its target.",
        markdown_table(heads, rows),
        "Distance of the end states from the fine solution of the same noises:",
        _ends(found["end_errors"]),
        *(_searched(found["search"]) if "search" in found else []),
        "![Coefficients and residuals](fit.png)",
        f"Use them with sampler.{key}={root / FILE}",
    ]
    return "\n\n".join(parts) + "\n"


def _searched(search: Record) -> list[str]:
    """What the search for features found."""
    names = {"base": "no coefficients", "least_squares": "least squares", "found": "found"}
    rows = [
        [label, *(f"{search[fid][name]:.3f}" for fid in ("fid", "held_out_fid"))]
        for name, label in names.items()
    ]
    return [
        f"The search tried {search['trials']} sets of coefficients. FID in {search['features']} of "
        f"the images of seeds {search['seeds']}, and held out, {search['held_out_seeds']}:",
        markdown_table(["coefficients", "FID", "held out"], rows),
    ]


def _ends(errors: Record) -> str:
    rows = [
        [
            name,
            *(short(errors[where][state][what]) for what in ("rms", "median") for state in STATES),
        ]
        for name, where in (("the batch", "batch"), ("held out", "held_out"))
    ]
    heads = ["noises", *(f"{what}, {state}" for what in ("RMS", "median") for state in STATES)]
    return markdown_table(heads, rows)


VERB = Verb(fit, Fitting)
