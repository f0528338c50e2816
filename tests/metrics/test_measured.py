"""A score of what was measured before is the score of the images."""

import pytest
import torch

from bdia_exp.metrics import measured
from bdia_exp.metrics.features import bundled
from bdia_exp.metrics.measured import ABOUT, Known, Measured
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.sources.checkpoints import BUNDLED

REFERENCE = BUNDLED / "fashion_reference.npz"


def test_a_score_needs_only_what_was_measured_and_the_record_of_the_networks():
    images = torch.randint(256, (80, 1, 32, 32), dtype=torch.uint8)
    labels, keys = torch.arange(80) % 10, [*range(80)]
    metrics, reference = ["fid", "isc"], Statistics.load(REFERENCE)
    direct = Score(bundled(), reference, metrics)
    direct.update(images, labels, keys)
    about = measured.description(direct.extractor, None, None)
    later = Score(Known(**{key: about[key] for key in ABOUT}), reference, metrics)
    later.add(Measured.of(direct.measure(images).arrays()), labels, keys)
    assert later.result() == direct.result()
    with pytest.raises(TypeError, match="only known by its record"):
        later.measure(images)


def test_clip_scores_of_a_record_are_averaged():
    about = {"name": "clip-model", "sha256": "12"}
    score = Score(bundled(), Statistics.load(REFERENCE), ["fid", "clip"], clip=Known(**about))
    features = torch.randn(80, 64)
    found = Measured(features, None, torch.arange(80).double())
    score.add(Measured.of(found.arrays()), None, [*range(80)])
    result = score.result()
    assert (result["clip_score"], result["clip"], result["clip_sha256"]) == (
        39.5,
        "clip-model",
        "12",
    )


@pytest.mark.parametrize("change", [{"resize": 32}, {"sha256": "0"}, {"dim": 3}, {"clip": {}}])
def test_files_of_features_that_can_differ_have_other_names(change):
    about = measured.description(bundled(), None, None)
    assert measured.suffix(about) == measured.suffix(about | {"note": "other words"})
    assert measured.suffix(about | change) != measured.suffix(about)
