"""`verify`: compares every file of a run with the sha256 in its list."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bdia_exp.console import progress, say
from bdia_exp.errors import UserError, few
from bdia_exp.jobs.asked import Asked
from bdia_exp.seeds import parse
from bdia_exp.store.files import THREADS
from bdia_exp.store.images import Folder, Latents
from bdia_exp.store.runs import RunFolder
from bdia_exp.store.shards import Shards
from bdia_exp.verbs import Verb

BY_SEED: dict[str, type[Folder] | type[Latents]] = {
    **{"folder": Folder, "zip": Folder, "scratch": Folder},
    "latents": Latents,
}


@dataclass(frozen=True, kw_only=True)
class Verifying(Asked):
    """The folder of a run."""

    run: str


def verify(asked: Verifying) -> int:
    """Reads every file that a run of `sample` has listed. Returns their number.

    Raises UserError if some are missing or damaged. Damaged files of shards are put aside.
    """
    run = RunFolder.of_run(asked.run)
    save = run.before.get("config", {}).get("save")
    if save not in (*BY_SEED, "shards") or (save == "scratch" and run.complete):
        raise UserError(f"{run.root} keeps no images (save={save}): there is nothing to verify")
    run.resume()
    try:
        if save == "shards":
            count, damaged = _of_shards(Shards.of_run(run.root, run.before))
        else:
            count, damaged = _by_seed(BY_SEED[save](run.root), run)
    finally:
        run.leave()
    if damaged:
        raise UserError(
            f"{run.root}: {len(damaged)} of {count} files are missing or damaged "
            f"({few(damaged)}): run the same `sample` again, it makes just these again"
        )
    say(f"{run.root}: {count} files are as the run wrote them")
    return count


def _of_shards(shards: Shards) -> tuple[int, Sequence[str]]:
    """The number of listed files, and the names of the damaged ones, which are put aside."""
    files = [shards.root / name for name in sorted(shards.manifest.stated())]
    damaged = []
    with ThreadPoolExecutor(THREADS) as pool, progress(len(files), "file") as bar:
        for file, whole in zip(files, pool.map(shards.is_whole, files), strict=True):
            bar.update()
            if not whole:
                damaged.append(file)
    if damaged:
        shards.put_aside(damaged)
    return len(files), [file.name for file in damaged]


def _by_seed(kept: Folder | Latents, run: RunFolder) -> tuple[int, Sequence[str]]:
    """The same for files with a seed each. A damaged one stays: it is not in the list."""
    stated = kept.manifest.stated()
    wanted = parse(run.before["identity"]["seeds"])
    seeds = [seed for seed in wanted if run.complete or str(seed) in stated]
    damaged = []
    with ThreadPoolExecutor(THREADS) as pool, progress(len(seeds), "file") as bar:
        for seed, data in zip(seeds, pool.map(kept.load, seeds), strict=True):
            bar.update()
            if data is None:
                damaged.append(str(Path(kept.root.name) / kept.name(seed)))
    return len(seeds), damaged


VERB = Verb(verify, Verifying)
