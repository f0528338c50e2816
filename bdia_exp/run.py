"""The verbs: sample, evaluate, reproduce, table, models. READ SECOND.

Each verb is a function whose parameters are the top-level keys of its configuration. The command
line hands over constructors with everything but the device bound to them; `config` is the same
configuration as plain data, for the record.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from bdia_exp import checkpoints, dist, figures, results, store, tables
from bdia_exp.core import Grid, Sampler
from bdia_exp.errors import UserError, nearest
from bdia_exp.metrics.features import Extractor
from bdia_exp.metrics.frechet import require_enough
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.models import Model
from bdia_exp.results import Record
from bdia_exp.sampling import Job, stream
from bdia_exp.seeds import parse

DEFAULT_IMAGES = 64
IDENTITY = ("model", "sampler", "grid", "nfe", "class", "dtype", "noise_device")
"""The keys that decide what image a seed gives; they and the seeds name a run."""


def sample(
    *,
    model: Callable[..., Model],
    sampler: Sampler,
    grid: Callable[..., Grid],
    features: Callable[..., Extractor],
    nfe: int,
    images: int | None,
    seeds: str | int | None,
    class_: int | None,
    batch: int,
    device: str,
    dtype: str,
    noise_device: str,
    out: str | None,
    save: str,
    sheet: int,
    score: bool,
    reference: str | None,
    config: Record,
    choices: Record,
) -> Record:
    """Generates images, and scores them if asked. Returns the record that it wrote."""
    wanted = _seeds(images, seeds)
    _positive("batch", batch)
    _one_of("save", save, ["folder", "zip", "none"])
    _one_of("dtype", dtype, ["auto", "float32", "float16", "bfloat16"])
    _one_of("noise_device", noise_device, ["cpu", "cuda"])
    device = _device(device)
    if noise_device == "cuda":
        _device("cuda")
    dist.start(device)
    job = Job.build(
        model=model,
        sampler=sampler,
        grid=grid,
        nfe=nfe,
        label=class_,
        device=device,
        dtype=dtype,
        noise_device=noise_device,
    )
    scorer = None
    if score:
        scorer = Score(features(device=device), _reference(reference))
        require_enough(len(wanted), scorer.extractor.dim)

    identity = _identity(config, str(job.model.provenance["sha256"]))
    name = f"{choices['model']}/{choices['sampler']}-nfe{nfe}-{results.digest(identity)}"
    root = Path(out).expanduser() if out else Path("runs") / name
    old = results.load(root / "record.json") or {}
    if old:
        results.require_same(root, old.get("identity", {}), identity)
    asked = ("save", "score", "reference", "features") if score else ("save",)
    if old.get("complete") and all(old["config"][key] == config[key] for key in asked):
        _say(f"{root} is complete: nothing to do")
        return old

    record: Record = results.provenance() | {
        "command": "sample",
        "identity": identity,
        "complete": False,
        "model": {"name": choices["model"], **job.model.provenance},
        "sampler": choices["sampler"],
        "grid": choices["grid"],
        "nfe": old.get("nfe"),
        "steps": len(job.grid) - 1,
        "images": len(wanted),
        "save": save,
        "processes": dist.world(),
        "device": _device_name(device),
        "config": config,
    }
    if dist.rank() == 0:
        store.write_text(root / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        results.save(root / "record.json", record)
    dist.barrier()

    batches = [wanted[i : i + batch] for i in range(0, len(wanted), batch)]
    folder = store.Folder(root) if save != "none" else None
    shown: dict[int, Tensor] = {}  # the contact sheet's images, by seed
    labels: dict[int, int] = {}
    sampled, began = 0, time.perf_counter()
    with _bar(len(wanted), "img") as bar:
        for made in stream(job, batches, folder, bar):
            if made.nfe is not None:
                sampled += len(made.seeds)
                if record["nfe"] is None and dist.rank() == 0:
                    record["nfe"] = made.nfe
                    results.save(root / "record.json", record)
            if scorer:
                scorer.update(made.images, made.labels)
            if made.labels is not None:
                labels |= dict(zip(made.seeds, made.labels.tolist(), strict=True))
            for seed, image in zip(made.seeds, made.images, strict=True):
                if len(shown) < sheet:
                    shown[seed] = image
    record["seconds"] = round(time.perf_counter() - began, 3)

    # Every rank gives what it has; the sheet keeps the first seeds of all.
    for rank_sampled, rank_shown, rank_labels in dist.gather((sampled, shown, labels)):
        record["sampled"] = record.get("sampled", 0) + rank_sampled
        shown |= rank_shown
        labels |= rank_labels
    record["images_per_second"] = round(record["sampled"] / record["seconds"], 3)
    if scorer:
        record["score"] = scorer.result()
    record["complete"] = True
    if dist.rank() == 0:
        if shown:
            picked = torch.stack([shown[k] for k in wanted if k in shown][:sheet])
            columns = len(picked) if len(picked) <= 16 else math.isqrt(len(picked) - 1) + 1
            store.save_image(root / "sheet.png", store.contact_sheet(picked, columns))
        if folder and labels:
            folder.label(wanted, [labels[k] for k in wanted])
        if folder and save == "zip":
            folder.pack(wanted)
        results.save(root / "record.json", record)
        _say(
            f"{root}: {len(wanted)} images, nfe {record['nfe']}, "
            f"{record['images_per_second']:.1f} images/s"
        )
        if scorer:
            _say(Score.sentence(record["score"]))
    dist.barrier()
    return record


def evaluate(
    *,
    images: str,
    reference: str,
    features: Callable[..., Extractor],
    limit: int | None,
    batch: int,
    device: str,
    out: str | None,
    config: Record,
    choices: Record,
) -> Record:
    """FID of a set of images. Returns the record that it wrote."""
    _positive("batch", batch)
    device = _device(device)
    found = store.ImageSet(images)
    if limit is not None and not 1 <= limit <= len(found):
        raise UserError(f"limit={limit} must be 1 to {len(found)}, the images in {found.path}")
    extractor = features(device=device)
    dist.start(device)
    scorer = Score(extractor, _reference(reference, extractor, batch))
    _score_set(scorer, found, limit or len(found), batch)
    record = results.provenance() | {
        "command": "evaluate",
        "images": str(found.path),
        "reference": reference,
        "device": _device_name(device),
        "score": scorer.result(),
        "config": config,
    }
    run = Path(images).expanduser()
    file = Path(out).expanduser() if out else run / f"score-{choices['features']}.json"
    if dist.rank() == 0:
        if out or (run / "record.json").exists():
            results.save(file, record)
        _say(f"{found.path} against {reference}")
        _say(Score.sentence(record["score"]))
    return record


def _score_set(scorer: Score, found: store.ImageSet, count: int, batch: int) -> None:
    """Scores the first `count` images, this rank's share of them."""
    starts = range(0, count, batch)[dist.rank() :: dist.world()]
    with _bar(count, "img") as bar:
        for start in starts:
            rows = range(start, min(start + batch, count))
            labels = None if found.labels is None else torch.tensor(found.labels)[list(rows)]
            scorer.update(found.read(rows), labels)
            bar.update(len(rows) * dist.world())


def _reference(source: str | None, extractor: Extractor | None = None, batch: int = 256):
    """Statistics from an npz with mu and sigma; with an extractor, of a set of images too."""
    if source is None:
        raise UserError("give reference=: an npz of statistics (mu, sigma) to score against")
    path = checkpoints.locate(source)
    if extractor is None or not store.is_image_set(path):
        return Statistics.load(path)
    scorer = Score(extractor, None)
    found = store.ImageSet(path)
    _score_set(scorer, found, len(found), batch)
    return scorer.statistics()


@dataclass(frozen=True)
class Cell:
    """One number of a table: a run of `sample` and where it stands."""

    table: str
    row: str
    column: str
    overrides: list[str]
    root: Path

    @property
    def name(self) -> str:
        return f"{self.table}: {self.row} at {self.column}"


def cells_of(experiment: Record, root: Path) -> list[Cell]:
    """Every cell of every table, row by row."""
    cells = []
    for table in experiment["tables"]:
        for row, how in table["rows"].items():
            for column, where in table["columns"].items():
                words = f"{table['name']}-{row}-{column}".replace("γ", "gamma")
                slug = re.sub(r"[^\w.=-]+", "_", words, flags=re.ASCII)
                overrides = [*experiment.get("common", []), *how, *where]
                cells.append(
                    Cell(table["name"], row, str(column), overrides, root / "cells" / slug)
                )
    return cells


def reproduce(
    *,
    experiment: Record,
    out: str | None,
    limit: int | None,
    cells: str | None,
    batch: int,
    device: str,
    dry_run: bool,
    compose: Callable[[list[str]], Record],
) -> Record:
    """Runs the cells of an experiment that are missing, then draws its tables.

    `compose` turns a list of overrides into the arguments of `sample`.
    """
    _positive("batch", batch)
    if limit is not None:
        _positive("limit", limit)
    dist.start(_device(device))
    images = min(limit or experiment["images"], experiment["images"])
    fewer = f"-{images}" if images < experiment["images"] else ""
    root = Path(out).expanduser() if out else Path("runs") / (experiment["name"] + fewer)
    plan = cells_of(experiment, root)
    if cells:
        words = [word.strip() for word in cells.split(",")]
        plan = [cell for cell in plan if any(word in cell.name for word in words)]
        if not plan:
            raise UserError(f"cells={cells}: no cell of {experiment['name']} has a name like that")

    def arguments(cell: Cell) -> Record:
        settings = [f"images={images}", f"batch={batch}", f"device={device}"]
        fixed = ["save=none", "score=true", "sheet=16", f"out='{cell.root}'"]
        return compose([*cell.overrides, *settings, *fixed])

    def is_done(cell: Cell) -> bool:
        record = results.load(cell.root / "record.json") or {}
        if not record.get("complete"):
            return False
        config = arguments(cell)["config"]
        weights = checkpoints.sha256(checkpoints.locate(config["model"]["checkpoint"]))
        return record["identity"] == _identity(config, weights)

    todo = [cell for cell in plan if not is_done(cell)]
    cost = {cell.root: images * arguments(cell)["nfe"] for cell in todo}
    _say(
        f"{experiment['title']}: {len(plan)} cells of {images} images; {len(plan) - len(todo)} are "
        f"there, {len(todo)} to run: {sum(cost.values()):,} network evaluations"
    )
    for cell in plan:
        _say(f"  {'to run' if cell in todo else 'there '}  {cell.name}")
    if dry_run:
        return {}
    spent, began = 0, time.perf_counter()
    for number, cell in enumerate(todo, 1):
        left = ""
        if spent:
            rest = sum(cost.values()) - spent
            left = f", about {_duration((time.perf_counter() - began) / spent * rest)} left"
        _say(f"[{number}/{len(todo)}] {cell.name}{left}")
        sample(**arguments(cell))
        spent += cost[cell.root]
    if todo:
        _say(f"all cells took {_duration(time.perf_counter() - began)}")
    return table(experiment=experiment, out=str(root))


def table(*, experiment: Record, out: str | None) -> Record:
    """Draws an experiment's tables, plot and sheet from its records, and prints the tables."""
    root = Path(out).expanduser() if out else Path("runs") / experiment["name"]
    records = {}
    for cell in cells_of(experiment, root):
        record = results.load(cell.root / "record.json")
        if record and record["complete"]:
            records[cell.table, cell.row, cell.column] = record
    if not records:
        raise UserError(
            f"{root} holds no records of {experiment['name']}: run `bdia-exp reproduce "
            f"{experiment['name']}` first, or give its out="
        )
    drawn = tables.collect(experiment, records)
    if dist.rank() == 0:
        text = tables.markdown(drawn)
        store.write_text(root / "tables.md", text)
        results.save(root / "tables.json", drawn)
        figures.fid_curves(drawn, root / "fid.png")
        sheets = {cell.name: cell.root / "sheet.png" for cell in cells_of(experiment, root)}
        figures.side_by_side(sheets, root / "samples.png")
        _say(f"\n{text}\nwritten to {root}: tables.md, tables.json, fid.png, samples.png")
    return drawn


def models(*, listing: Record) -> Record:
    """Prints the models that can be chosen, whether their checkpoint is there, and its size."""
    for name, entry in listing.items():
        state = "needs model.checkpoint=PATH"
        if entry["checkpoint"]:
            try:
                path = checkpoints.locate(entry["checkpoint"])
                state = f"ready ({path.stat().st_size / 1e6:.1f} MB)"
            except UserError:
                state = f"checkpoint missing: {entry['checkpoint']}"
        _say(f"model={name:16} {state:28} {entry['about']}")
    return listing


def _identity(config: Record, checkpoint_sha256: str) -> Record:
    """What decides the images of a run of `sample`, in the form that a record keeps."""
    seeds, images = config["seeds"], config["images"]
    wanted = str(seeds) if seeds is not None else f"0-{(images or DEFAULT_IMAGES) - 1}"
    chosen = {key: config[key] for key in IDENTITY}
    return json.loads(json.dumps(chosen | {"seeds": wanted, "checkpoint": checkpoint_sha256}))


def _seeds(images: int | None, seeds: str | int | None) -> list[int]:
    if seeds is None:
        count = DEFAULT_IMAGES if images is None else images
        _positive("images", count)
        return list(range(count))
    if images is not None:
        raise UserError("give images= (seeds 0, 1, …) or seeds= (which ones), not both")
    return parse(seeds)


def _positive(key: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{key}={value} must be 1 or more")


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown{nearest(value, known)}")


def _device(device: str) -> str:
    """The device of this process: `auto` is a GPU where there is one."""
    kind = device.split(":")[0]
    _one_of("device", kind, ["auto", "cpu", "cuda"])
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"device={device}: PyTorch sees no GPU here; use device=cpu")
    index = int(device.split(":")[1]) if ":" in device else dist.local_rank()
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device=cuda:{index} does not exist: this machine has {torch.cuda.device_count()} "
            "GPUs; start as many processes as that, or fewer"
        )
    return f"cuda:{index}"


def _device_name(device: str) -> str:
    if device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def _bar(total: int, unit: str) -> tqdm:
    layout = "{percentage:3.0f}% |{bar}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(total=total, unit=unit, bar_format=layout, disable=dist.rank() > 0, leave=False)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(text: str) -> None:
    """Prints on rank 0, above any progress bar."""
    if dist.rank() == 0:
        tqdm.write(text, file=sys.stdout)
