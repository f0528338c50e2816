"""What a whole run takes beside its network: the time of `sample` to that of its network calls.

    python bench/overhead.py                  # the bundled model
    python bench/overhead.py --full           # EDM's CIFAR-10 network with random weights

Two runs of the verb, from reading the checkpoint to its record: scored with save=none, and
save=folder. Their limit is NFE calls of the bare network for every 64 images (--full: 16), and for
the scored run the features of all images, with nothing else. All are run in turn. The goal is a
ratio of 1.05, or 1.02 with --full. The words after the options are those of `bdia-exp sample`.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Row, as_script, asked_of, in_turn, options, ratio, report
from safetensors.torch import save_file

from bdia_exp import dist
from bdia_exp.batching import MOST, ROWS
from bdia_exp.cli.configs import settings
from bdia_exp.jobs.sampling import Job
from bdia_exp.jobs.scoring import scorer_of
from bdia_exp.jobs.settings import Sampling
from bdia_exp.models.edm import EDM, EDMPrecond
from bdia_exp.verbs.sample import sample

SAVES = {"scored, save=none": "score=true save=none", "save=folder": "save=folder"}


def published() -> dict[str, Any]:
    """The architecture of EDM's CIFAR-10 network."""
    return dict(settings("sample", ["model=edm_cifar10"]).model.config["network"])


def random_network(about: dict[str, Any], folder: Path) -> Path:
    """A checkpoint with an architecture and new weights."""
    torch.manual_seed(0)
    file = folder / "random.safetensors"
    save_file(EDMPrecond(**about).state_dict(), file)
    described = {"network": about, "training": {}}
    file.with_suffix(".json").write_text(json.dumps(described))
    return file


def bare(model: EDM, asked: Sampling, rows: int) -> None:
    """As many calls of the network as the run has, on numbers in its layout."""
    x = torch.randn(rows, *model.shape).to(memory_format=torch.channels_last)
    labels = torch.eye(model.num_classes)[torch.arange(rows) % model.num_classes]
    with torch.inference_mode():
        for _ in range(len(asked.wanted) // rows * asked.nfe):
            model.net(x, torch.tensor(1.0), labels)


def features(scorer: Any, images: torch.Tensor, count: int) -> None:
    with torch.inference_mode():
        for _ in range(count // len(images)):
            scorer.extractor(images)


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--full", action="store_true", help="EDM's CIFAR-10 network, random")
    parser.add_argument("--images", type=int, help="by default 512, or 128 with --full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("words", nargs="*", help="by default nfe=19, or nfe=3 with --full")
    given = parser.parse_args(words)
    given.words = given.words or ["nfe=3" if given.full else "nfe=19"]
    count = given.images or (128 if given.full else 512)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        common = [*given.words, f"images={count}", f"batch={min(count, 64)}"]
        if given.full:
            common += ["model=edm", f"model.checkpoint={random_network(published(), root)}"]
            common += ["features=garments", "reference=bundled:fashion_reference.npz"]
        asked = asked_of(common)
        device = dist.device(asked.device)
        model = Job.of(asked, device).model
        scorer = scorer_of(asked_of([*common, "score=true"]), device, asked.batch)
        images = torch.zeros(asked.batch, *model.image_shape, dtype=torch.uint8)

        def whole(save: str) -> None:
            folder = tempfile.mkdtemp(dir=root)
            sample(asked_of([*common, *save.split(), f"out={folder}/run"]))

        runs: dict[str, Callable[[], None]] = {
            "network": partial(bare, model, asked, ROWS if given.full else MOST),
            "features": partial(features, scorer, images, count),
            **{label: partial(whole, save) for label, save in SAVES.items()},
        }
        for run in (runs["network"], runs["features"]):
            run()  # chooses kernels
        times = in_turn(runs, given.rounds)
    rows: list[Row] = [{"what": what, "seconds": min(times[what])} for what in runs]
    both = [sum(pair) for pair in zip(times["network"], times["features"], strict=True)]
    for row, label in zip(rows[2:], SAVES, strict=True):
        row.update(ratio(times[label], both if "scored" in label else times["network"]))
    about = "edm_cifar10, random weights" if given.full else "fashion_mini"
    report(
        "overhead-full" if given.full else "overhead",
        rows,
        given.out,
        network=about,
        words=given.words,
        images=count,
        batch=asked.batch,
    )


if __name__ == "__main__":
    as_script(main)
