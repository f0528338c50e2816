"""KID, precision and recall, Inception Score: against their definitions, and through a score."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch_fidelity import metric_kid

from bdia_exp.errors import UserError
from bdia_exp.metrics.features import bundled
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.samples import FeatureSamples, inception_score, kid, precision_recall
from bdia_exp.metrics.score import Score
from bdia_exp.report import scores

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _fewer_subsets(monkeypatch):
    """10 of KID's 100 subsets: of 1,000 images, all subsets of 1,000 are the same."""
    fewer = partial(metric_kid.kid_features_to_metric, kid_subsets=10)
    monkeypatch.setattr(metric_kid, "kid_features_to_metric", fewer)


def normal(n: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(shift, 1, (n, 8)).astype(np.float32))


def test_kid_is_the_unbiased_mmd_with_the_cubic_kernel():
    """With exactly 1,000 images every subset is the whole set, so all subsets agree."""
    a, b = normal(1000), normal(1000, 0.3)

    def kernel(x, y):
        return (x.double() @ y.double().T / 8 + 1) ** 3

    off = 1000 * 999
    same = sum((kernel(x, x).sum() - kernel(x, x).trace()) / off for x in (a, b))
    expected = float(same - 2 * kernel(a, b).mean())
    found = kid(a, b)
    assert found["kid"] == pytest.approx(expected, rel=1e-3)
    assert found["kid_std"] < 1e-4 * found["kid"]
    assert abs(kid(a, normal(1000))["kid"]) < expected / 20


def test_precision_and_recall_by_their_definition():
    found, real = normal(40, 0.8), normal(60)

    def covered(points, by):
        radius = torch.cdist(by, by).sort(1).values[:, 3]  # the third neighbour; itself is first
        return (torch.cdist(points, by) <= radius).any(1).float().mean().item()

    answer = precision_recall(found, real)
    assert answer["precision"] == pytest.approx(covered(found, real))
    assert answer["recall"] == pytest.approx(covered(real, found))
    assert 0 < answer["recall"] < 1


def test_inception_score_of_known_predictions():
    assert inception_score(torch.zeros(50, 10))["isc"] == pytest.approx(1)
    certain = 1e3 * torch.eye(4).repeat(2500, 1)  # four classes, each as often
    assert inception_score(certain)["isc"] == pytest.approx(4, rel=1e-2)  # ten unequal splits
    half = torch.tensor([[0.0, 0.0, -1e3], [-1e3, 0.0, 0.0]]).repeat(5000, 1)
    p = np.array([0.25, 0.5, 0.25])
    expected = math.exp(-(p * np.log(p)).sum() - math.log(2))  # H(y) − H(y|x)
    assert inception_score(half)["isc"] == pytest.approx(expected, rel=1e-3)


def test_too_few_images_are_said():
    with pytest.raises(UserError, match=r"subsets of 1,000 images; there are 999"):
        kid(normal(1000), normal(999))
    with pytest.raises(UserError, match="more than 3 images, not 3"):
        precision_recall(normal(3), normal(9))
    with pytest.raises(UserError, match="needs 10 images or more, not 9"):
        inception_score(torch.zeros(9, 4))


def test_samples_come_back_in_the_order_of_their_keys():
    features, logits = normal(6), normal(6)
    kept = FeatureSamples()
    kept.update(features[[4, 1]], logits[[4, 1]], torch.tensor([4, 1]))
    kept.update(features[[0, 5, 2, 3]], logits[[0, 5, 2, 3]], torch.tensor([0, 5, 2, 3]))
    assert torch.equal(kept.compute()[0], features)
    assert torch.equal(kept.compute()[1], logits)


def images(n: int, low: int = 0) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(low, 256, (n, 1, 32, 32), dtype=np.uint8))


@pytest.fixture(scope="module")
def reference() -> Statistics:
    score = Score(bundled(), None, keep=True)
    score.update(images(1000), None, range(1000))
    return score.statistics()


def test_one_pass_gives_every_metric_whatever_the_order(reference, tmp_path):
    reference.save(tmp_path / "r.npz")
    loaded = Statistics.load(tmp_path / "r.npz")
    assert np.array_equal(loaded.features, reference.features)
    drawn, numbers = images(1000, 64), []
    for order in (torch.arange(1000), torch.randperm(1000)):
        score = Score(bundled(), loaded, ["fid", "kid", "prc", "isc"])
        for part in order.split(300):
            score.update(drawn[part], None, part.tolist())
        numbers.append(score.result())
    assert {"fid", "kid", "precision", "recall", "isc"} <= numbers[0].keys()
    for key in ("kid", "precision", "recall", "isc"):
        assert numbers[0][key] == numbers[1][key]
    assert numbers[0]["fid"] == pytest.approx(numbers[1]["fid"], rel=1e-9)
    text = scores.sentence(numbers[0])
    assert f"KID {numbers[0]['kid']:.6f}" in text
    assert f"recall {numbers[0]['recall']:.4f}" in text
    assert f"classifier score {numbers[0]['isc']:.4f}" in text


def test_metrics_that_cannot_be_are_refused_before_any_image(reference):
    bare = Statistics(reference.mean, reference.cov, reference.count, reference.meta)
    with pytest.raises(UserError, match="did you mean 'kid'"):
        Score(bundled(), bare, ["kidd"])
    for metric in ("kid", "prc"):
        with pytest.raises(UserError, match="keep=true"):
            Score(bundled(), bare, [metric])
    without = bundled()
    without.has_logits = False
    with pytest.raises(UserError, match="isc needs logits"):
        Score(without, bare, ["isc"])


def test_statistics_of_other_features_are_refused(reference):
    other = Statistics(reference.mean, reference.cov, None, {"features": "inception"})
    with pytest.raises(UserError, match="made with features=inception, not fashion_features"):
        Score(bundled(), other)
    with pytest.raises(UserError, match="2048 dimensions"):
        Score(bundled(), Statistics(np.zeros(2048), np.eye(2048)))
    with pytest.raises(UserError, match="other weights of fashion_features"):
        Score(bundled(), Statistics(reference.mean, reference.cov, None, {"sha256": "0"}))


def test_features_of_the_wrong_shape_are_refused(reference, tmp_path):
    np.savez(tmp_path / "r.npz", mu=reference.mean, sigma=reference.cov, features=np.zeros((3, 9)))
    with pytest.raises(UserError, match=r"features that are not float32 \[N, 64\]"):
        Statistics.load(tmp_path / "r.npz")
