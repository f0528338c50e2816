"""`sample`: generates the images of seeds, and scores them if asked."""

import time
from dataclasses import dataclass, field, fields

from torch import Tensor

from bdia_exp import dist
from bdia_exp.console import progress, say
from bdia_exp.jobs import sharding
from bdia_exp.jobs.asked import as_key
from bdia_exp.jobs.claims import claim, keep_coefficients, require_weights
from bdia_exp.jobs.finished import finished
from bdia_exp.jobs.fits.fitting import ensure
from bdia_exp.jobs.gammas import full_name, gammas_of
from bdia_exp.jobs.identity import identity_of
from bdia_exp.jobs.references import reference_sha256, require_statistics
from bdia_exp.jobs.sampling import Job, Places, stream
from bdia_exp.jobs.scoring import scorer_of
from bdia_exp.jobs.settings import Sampling, Scoring
from bdia_exp.jobs.texts import guidance_of
from bdia_exp.metrics.score import Score
from bdia_exp.models import warn_of_cut
from bdia_exp.overrides import listed
from bdia_exp.report import scores
from bdia_exp.store.images import save_sheet
from bdia_exp.store.records import Record
from bdia_exp.store.runs import RunFolder
from bdia_exp.store.shards import FOLDER, Shards
from bdia_exp.verbs import Verb

MADE = ("seconds", "images_per_second", "processes", "device")
"""What a record says of how its images were made."""
SCORED = ("score", "features", "reference_sha256")
"""What it says of their score."""


def sample(asked: Sampling) -> Record:
    """Generates images, and scores them if asked. Returns the record that it wrote."""
    wanted = asked.wanted
    device = dist.device(asked.device)
    if asked.noise_device == "cuda":
        dist.device("cuda")
    dist.start(device)
    ensure(asked, device, asked.batch)
    run = claim(asked, lambda then: identity_of(asked, then, seeds=asked.seeds_text))
    run.require_ours("images", "images.zip", "latents", FOLDER)
    asked = sharding.settled(asked, run.root, run.before)
    if finished(asked, run):
        say(f"{run.root} is complete: nothing to do")
        return run.before
    places = Places.of(run.root, asked)
    job = Job.of(asked, device)
    require_weights(run, job.model.provenance)
    scorer = _scorer(asked, job, device)

    description = _described(asked, job, run, device)
    if scorer:
        description["features"] = sharding.about(scorer)
        description["reference_sha256"] = reference_sha256(asked.reference)
    if job.texts:
        description["prompts_cut"] = warn_of_cut(job.model, job.texts.prompts_of(wanted))
    part = asked.piece
    config = {**asked.plain(), "part": None}
    if not scorer:
        _keep_score(run.before, description, config)
    run.begin(description, config, part.name if part else None)
    make = _in_shards if isinstance(places.images, Shards) else _in_files
    try:
        if part:
            sharding.require_same_part(asked, run, scorer)
        keep_coefficients(asked, run.root)
        if dist.rank() == 0 and job.texts:
            job.texts.prompts.write(run.root / "prompts.csv", wanted)
        numbers = make(asked, job, places, run, scorer)
        if not (part or numbers["sampled"]):  # the images are those of an earlier start
            numbers |= {key: run.before[key] for key in MADE if key in run.before}
        record = run.record if part else run.finish(numbers)
    finally:
        run.leave()
    if part:
        return record
    _tell(asked, run, len(wanted))
    dist.barrier()
    return record


def _scorer(asked: Sampling, job: Job, device: str) -> Score | None:
    """The scorer of a run that is scored. Raises UserError if its images cannot be."""
    if not asked.score:
        return None
    if asked.part:
        require_statistics(asked.reference)
    scorer = scorer_of(asked, device, asked.batch, listed(asked.metrics), asked.clip)
    scorer.require_enough(len(asked.wanted))
    scorer.require_prompts(job.model.takes_text)
    return scorer


def _keep_score(before: Record, description: Record, config: Record) -> None:
    """Takes over the score of an earlier start, and its settings: the images are the same."""
    if "score" in before:
        description |= {key: before[key] for key in SCORED if key in before}
        keys = ("score", *(as_key(field.name) for field in fields(Scoring)))
        config |= {key: before["config"][key] for key in keys if key in before["config"]}


def _in_shards(
    asked: Sampling, job: Job, places: Places, run: RunFolder, scorer: Score | None
) -> Record:
    """Makes the missing shards. Returns the numbers of the run; none of a part."""
    shards = places.images
    assert isinstance(shards, Shards)
    made = sharding.make(job, run, places, asked, scorer)
    dist.barrier()
    if asked.piece:
        say(
            f"{run.root}: part {asked.piece} has its {len(shards.mine)} of {len(shards.all)} "
            f"shards, {len(made)} of them new; when all parts are there: bdia-exp merge {run.root}"
        )
        return {}
    sheet = asked.wanted[: asked.sheet]
    return dist.by_rank_0(lambda: sharding.added_up(run, shards, scorer, sheet))


def _in_files(
    asked: Sampling, job: Job, places: Places, run: RunFolder, scorer: Score | None
) -> Record:
    """Makes the missing images, each a file. Returns the numbers of the run."""
    wanted = asked.wanted
    tally, began = _Tally(), time.perf_counter()
    starts = range(0, len(wanted), asked.batch)[dist.rank() :: dist.world()]
    with progress(len(wanted), "img") as bar:
        for made in stream(job, (wanted[i : i + asked.batch] for i in starts), places, bar):
            if made.nfe is not None and run.record["nfe"] is None:
                run.note("nfe", made.nfe)
            tally.add(made, asked.sheet)
            if scorer and made.images is not None:
                texts = job.texts.prompts_of(made.seeds) if job.texts else None
                scorer.update(made.images, made.labels, made.seeds, texts)
    seconds = max(round(time.perf_counter() - began, 3), 0.001)  # 0 on an idle rank
    tally = tally.of_all_ranks()
    numbers: Record = {"seconds": seconds, "sampled": tally.sampled}
    numbers["nfe"] = run.record["nfe"] or tally.nfe
    if numbers["nfe"] is None:  # an earlier start was killed before it noted the number
        numbers["nfe"] = job.sample(wanted[:1], lambda: None).nfe
    numbers["images_per_second"] = round(tally.sampled / seconds, 3)
    if scorer:
        numbers["score"] = scorer.result()
    if dist.rank() == 0:
        _keep(asked, tally, places, run)
    return numbers


def _described(asked: Sampling, job: Job, run: RunFolder, device: str) -> Record:
    """The record of a run before it has made images."""
    return {
        "command": "sample",
        "model": {"name": asked.model.name, **job.model.provenance},
        "sampler": asked.sampler.name,
        "gamma": gammas_of(asked.sampler.config),
        "grid": asked.grid.name,
        "nfe": run.before.get("nfe"),
        "steps": len(job.grid) - 1,
        "images": len(asked.wanted),
        "save": asked.save,
        "processes": dist.world(),
        "device": dist.device_name(device),
        **(job.texts.provenance if job.texts else {}),
        **guidance_of(asked),
    }


@dataclass
class _Tally:
    """What a rank has made: images sampled, the contact sheet's images and labels, by seed."""

    sampled: int = 0
    nfe: int | None = None  # evaluations per image; None: nothing was sampled
    shown: dict[int, Tensor] = field(default_factory=dict)
    labels: dict[int, int] = field(default_factory=dict)

    def add(self, made, most: int) -> None:
        """Counts a batch, and keeps its images until there are `most` in all."""
        if made.nfe is not None:
            self.sampled += len(made.seeds)
            self.nfe = made.nfe
        if made.labels is not None:
            self.labels |= dict(zip(made.seeds, made.labels.tolist(), strict=True))
        if made.images is not None:
            room = max(most - len(self.shown), 0)
            self.shown |= dict(list(zip(made.seeds, made.images, strict=True))[:room])

    def of_all_ranks(self) -> "_Tally":
        """Everything that all ranks have made."""
        total = _Tally()
        for rank in dist.gather(self):
            total.sampled += rank.sampled
            total.nfe = total.nfe or rank.nfe
            total.shown |= rank.shown
            total.labels |= rank.labels
        return total


def _keep(asked: Sampling, tally: _Tally, places: Places, run: RunFolder) -> None:
    """Writes the sheet and the labels, and packs or removes the images."""
    wanted, folder = asked.wanted, places.images
    assert not isinstance(folder, Shards)
    shown = [tally.shown[seed] for seed in wanted if seed in tally.shown][: asked.sheet]
    save_sheet(run.root / "sheet.png", shown)
    if folder and tally.labels and asked.save != "scratch":
        folder.label(wanted, [tally.labels[seed] for seed in wanted])
    if asked.save == "latents":
        places.latents.manifest.merge()
    if folder and asked.save == "scratch":
        folder.remove()
    elif folder:
        folder.manifest.merge()
        move = folder.pack if asked.save == "zip" else folder.unpack
        move(wanted)


def _tell(asked: Sampling, run: RunFolder, count: int) -> None:
    record = run.record
    each = " (each of two rows: guidance)" if record.get("rows_per_evaluation") == 2 else ""
    say(
        f"{run.root}: {count} images, {full_name(asked.sampler)}, nfe {record['nfe']}{each}, "
        f"{record['images_per_second']:.1f} images/s"
    )
    if "score" in record:
        say(scores.sentence(record["score"]))


VERB = Verb(sample, Sampling)
