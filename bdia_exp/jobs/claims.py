"""The folder of a run: claimed for its identity before anything is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bdia_exp import dist
from bdia_exp.jobs.gammas import full_name
from bdia_exp.jobs.identity import files_of, names_of, plainly
from bdia_exp.jobs.settings import Inverting, Sampling, Solving
from bdia_exp.sources import checkpoints
from bdia_exp.store import records
from bdia_exp.store.files import write_text
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder

NEEDED = {"checkpoint", "control_network", "coefficients_sha256"}
"""The files without which no run is known, by the identity's key of their sha256."""


def claim(
    asked: Sampling | Inverting, identify: Callable[[Record], Record], prefix: str = ""
) -> RunFolder:
    """The folder of a run with its identity, before anything is loaded.

    `identify` makes the identity from what is `known` of files that are not on this machine.
    Published files are downloaded first, unless the folder's record has their sha256. Raises
    UserError if the folder contains another experiment, or if a file is missing.
    """
    folder = RunFolder(Path(asked.out).expanduser()) if asked.out else None
    then = known(folder.before, asked) if folder else {}
    _fetch({what: name for what, name in files_of(asked).items() if what not in then}, asked)
    identity = identify(then)
    if folder is None:
        runs, digest = Path("runs") / asked.model.name, records.digest(identity)
        name = f"{prefix}{full_name(asked.sampler)}-nfe{asked.nfe}-{digest}"
        earlier = sorted(runs.glob(f"{prefix}{asked.sampler.name}-*nfe{asked.nfe}-{digest}"))
        folder = RunFolder(earlier[0] if earlier else runs / name)  # names had no γ before
        identity = identify(known(folder.before, asked))
    if folder.before:
        records.require_same(folder.root, plainly(folder.before.get("identity", {})), identity)
    folder.identity = identity
    return folder


def known(record: Record, asked: Solving) -> Record:
    """The identity in a record, without the sha256 of files that have another name now.

    It tells what a file is that is not on this machine.
    """
    then, now = names_of(record.get("config", {})), names_of(asked.plain())
    changed = {what for what in then if now.get(what, then[what]) != then[what]}
    identity = plainly(record.get("identity", {}))
    return {key: value for key, value in identity.items() if key not in changed}


def _fetch(files: Mapping[str, str], asked: Solving) -> None:
    """Downloads the published files that are not on this machine.

    Before a download it builds the network without weights, so a wrong configuration fails early.
    Raises UserError if another file that is NEEDED is not here.
    """
    absent = {what: name for what, name in files.items() if checkpoints.present(name) is None}
    published = {what for what, name in absent.items() if name.startswith(("fetch:", "hub:"))}
    if published:
        asked.model.make(device="meta", dtype=asked.dtype)
    for what, name in absent.items():
        if what in published or (what in NEEDED and not name.startswith("random:")):
            checkpoints.locate(name)


def require_weights(run: RunFolder, provenance: Mapping[str, Any]) -> None:
    """Raises UserError if the loaded weights are not those of the identity that was claimed."""
    loaded = {
        "checkpoint": provenance["sha256"],
        "control_network": provenance.get("control_sha256"),
    }
    claimed = {
        what: value
        for what, value in run.identity.items()
        if what in loaded and not value.startswith("random:")
    }
    records.require_same(run.root, claimed, {what: loaded[what] for what in claimed})


def keep_coefficients(asked: Solving, root: Path) -> None:
    """Copies the file that the sampler reads its coefficients from, if any, into a run's folder."""
    if dist.rank() == 0 and (name := files_of(asked).get("coefficients_sha256")):
        text = checkpoints.locate(name).read_text(encoding="utf-8")
        write_text(root / "coefficients.json", text)
