"""The bundled extractor: what it says of itself, exactness, and what was recorded of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from bdia_exp.errors import UserError
from bdia_exp.metrics.features import BUNDLED, ClassifierFeatures, bundled, label_accuracy
from bdia_exp.metrics.frechet import frechet_distance, rank
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.sums import FeatureMoments

ROOT = Path(__file__).parents[2]
TEST_SET = ROOT / "data" / "fashion_mnist" / "test.npz"
SEEDED = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (100, 1, 32, 32), dtype=torch.uint8, generator=SEEDED)


@pytest.fixture(scope="module")
def extractor():
    return bundled()


@pytest.fixture(scope="module")
def reference():
    return Statistics.load(BUNDLED / "fashion_reference.npz")


def test_shapes_and_types(extractor):
    features, logits = extractor(IMAGES)
    assert features.shape == (100, extractor.dim)
    assert logits.shape == (100, extractor.classes)
    assert features.dtype == logits.dtype == torch.float32
    assert extractor(IMAGES[:0]).features.shape == (0, extractor.dim)


def test_says_that_it_is_not_inception(extractor):
    assert not extractor.comparable_to_inception
    assert "not comparable with Inception" in extractor.note


def test_deterministic(extractor):
    assert torch.equal(extractor(IMAGES).features, bundled()(IMAGES).features)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_independent_of_batch_size_to_the_bit(extractor, size):
    whole = extractor(IMAGES)
    parts = [extractor(batch) for batch in IMAGES.split(size)]
    assert torch.equal(torch.cat([p.features for p in parts]), whole.features)
    assert torch.equal(torch.cat([p.logits for p in parts]), whole.logits)


def test_moments_take_its_features(extractor):
    moments = FeatureMoments(extractor.dim)
    moments.update(extractor(IMAGES).features)
    assert moments.compute().count == 100


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.float(),
        IMAGES.expand(-1, 2, -1, -1),
        IMAGES[:, :, :28, :28],
        IMAGES[0],
    ],
)
def test_images_of_another_kind(extractor, images):
    with pytest.raises(UserError, match=r"takes uint8 images \[B, 1, 32, 32\], not "):
        extractor(images)


def test_grey_images_that_are_stored_as_rgb(extractor):
    """What torchvision's `save_image` writes; colours are refused, with what to do."""
    rgb = IMAGES.repeat(1, 3, 1, 1)
    assert torch.equal(extractor(rgb).features, extractor(IMAGES).features)
    rgb[-1, 2, 0, 0] ^= 1
    with pytest.raises(UserError, match="convert them to grey, or choose features=inception"):
        extractor(rgb)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        ClassifierFeatures(tmp_path / "none")


def test_reference_belongs_to_the_extractor(extractor, reference):
    assert reference.dim == extractor.dim
    assert reference.meta["sha256"] == extractor.sha256 == extractor.record["measured"]["sha256"]
    assert reference.count == 60_000
    assert rank(reference) == extractor.dim


def test_record_is_sane(extractor):
    measured = extractor.record["measured"]
    assert 0.91 <= measured["test_accuracy"] <= measured["train_accuracy"] <= 1
    assert 0 < measured["floor_fid"] < 1
    assert extractor.record["training"]["parameters"] < 300_000
    assert sum(file.stat().st_size for file in BUNDLED.glob("fashion_[fr]e[af]*")) < 1.5e6


def test_configuration_names_it():
    config = OmegaConf.load(ROOT / "configs" / "features" / "bundled.yaml")
    assert config._target_ == f"{bundled.__module__}.{bundled.__qualname__}"


def test_label_accuracy_counts_over_batches():
    accuracy = label_accuracy(classes=3)
    accuracy.update(torch.eye(3), torch.tensor([0, 1, 0]))
    accuracy.update(torch.eye(3)[:1], torch.tensor([0]))
    assert accuracy.compute().item() == 0.75


@pytest.mark.skipif(not TEST_SET.exists(), reason="no data: run scripts/fashion_mnist.py")
def test_recorded_accuracy_and_floor_are_measured_again(extractor, reference):
    data = np.load(TEST_SET)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data["labels"]).long()
    moments, accuracy = FeatureMoments(extractor.dim), label_accuracy(extractor.classes)
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):
        features, logits = extractor(x)
        moments.update(features)
        accuracy.update(logits, y)
    measured = extractor.record["measured"]
    assert accuracy.compute() >= 0.91
    assert accuracy.compute() == pytest.approx(measured["test_accuracy"], abs=5e-4)
    floor = frechet_distance(moments.compute(), reference)
    assert floor == pytest.approx(measured["floor_fid"], rel=1e-3)
