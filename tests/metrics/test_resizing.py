"""Images as they are scored: OpenCV's area averaging, the middle square, any sizes in a set."""

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.metrics.features import bundled
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.resizing import squares
from bdia_exp.metrics.score import Score
from bdia_exp.sources import checkpoints
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.verbs import verb

RNG = np.random.default_rng(0)


def image(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(0, 256, shape, dtype=np.uint8))


def pixels(x: torch.Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy()


def test_shorter_side_by_area_then_the_middle():
    wide, tall = image(3, 48, 64), image(3, 61, 40)
    made = squares([wide, tall], 32)
    assert made.shape == (2, 3, 32, 32)
    by_hand = cv2.resize(pixels(wide), (43, 32), interpolation=cv2.INTER_AREA)  # 42.67 wide
    assert np.array_equal(pixels(made[0]), by_hand[:, 5:37])
    by_hand = cv2.resize(pixels(tall), (32, 49), interpolation=cv2.INTER_AREA)
    assert np.array_equal(pixels(made[1]), by_hand[8:40])


def test_halving_is_the_mean_of_four_pixels():
    x = image(2, 3, 64, 64)
    mean = torch.nn.functional.avg_pool2d(x.float(), 2)
    assert (squares(x, 32).float() - mean).abs().max() <= 0.5


def test_grey_images_become_coloured_only_beside_coloured_ones():
    grey, coloured = image(1, 40, 40), image(3, 40, 40)
    assert squares([grey], 32).shape == (1, 1, 32, 32)
    both = squares([grey, coloured], 32)
    assert torch.equal(both[0], squares([grey], 32)[0].expand(3, -1, -1))
    assert torch.equal(both[1], squares([coloured], 32)[0])
    assert squares([], 32).shape == (0, 1, 32, 32)


def test_opencv_is_asked_only_where_a_size_changes(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    x = image(2, 3, 32, 32)
    assert torch.equal(squares(x, 32), x)
    assert torch.equal(squares(image(1, 1, 32, 40) * 0 + 7, 32), torch.full((1, 1, 32, 32), 7))
    with pytest.raises(UserError, match=r"cv2 is needed here .*: run pip install '.\[sd\]'"):
        squares(x, 16)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A zip of 80 JPEGs of many sizes, some grey, one on its side, as COCO's is."""
    root = tmp_path_factory.mktemp("photos")
    with zipfile.ZipFile(root / "val.zip", "w") as archive:
        for k in range(80):
            shape = [int(n) for n in RNG.integers(33, 70, 2)] + ([3] if k % 5 else [])
            picture = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
            exif = Image.Exif()
            exif[0x0112] = 6 if k == 7 else 1  # its orientation
            with archive.open(f"val/{k:03d}.jpg", "w") as file:
                picture.save(file, format="jpeg", exif=exif)
    return root / "val.zip"


def test_a_set_of_mixed_sizes_is_read_in_order(photos, tmp_path):
    found = ImageSet(photos)
    with zipfile.ZipFile(photos) as archive:
        archive.extractall(tmp_path)
    for k, x in enumerate(found.read_each(range(80))):
        flag = cv2.IMREAD_COLOR_RGB if k % 5 else cv2.IMREAD_GRAYSCALE
        theirs = cv2.imread(str(tmp_path / f"val/{k:03d}.jpg"), flag)
        assert x.shape[1:] == theirs.shape[:2]  # turned as OpenCV turns it
        assert x.shape[0] == (3 if k % 5 else 1)
    with pytest.raises(UserError, match="one size only, unless resize= makes them one"):
        found.read(range(80))


class Grey:
    """The bundled features of coloured images."""

    def __init__(self, device):
        self.inner = bundled(device)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, images):
        return self.inner(images.float().mean(1, keepdim=True).to(torch.uint8))


@pytest.mark.quick
def test_reference_and_evaluate_of_a_set_of_mixed_sizes(photos, tmp_path, monkeypatch, capsys):
    """Through the verbs, from a published zip: the score is that of images resized by hand."""
    monkeypatch.setattr(
        checkpoints, "locate", lambda n, *_: photos if n == "fetch:v.zip" else Path(n)
    )
    words = ["images=fetch:v.zip", "resize=32", "batch=16", "device=cpu"]
    asked = settings("reference", [*words, f"out={tmp_path / 'r.npz'}"])
    verb("reference").function(replace(asked, features=Choice("grey", {}, Grey)))
    assert "images resized to 32 pixels" in capsys.readouterr().out
    stored = Statistics.load(tmp_path / "r.npz")
    assert stored.meta["resize"] == 32

    by_hand = squares(ImageSet(photos).read_each(range(80)), 32)
    score = Score(Grey("cpu"), None)
    score.update(by_hand, None, range(80))
    assert np.allclose(score.statistics().mean, stored.mean, atol=1e-6)

    def evaluate(reference: str, *more: str) -> dict:
        more = (f"reference={reference}", f"out={tmp_path / 's.json'}", *more)
        asked = settings("evaluate", [*words, *more])
        given = replace(asked, features=Choice("grey", {}, Grey))
        return verb("evaluate").function(given)["score"]

    for reference in (tmp_path / "r.npz", "fetch:v.zip"):
        found = evaluate(str(reference))
        assert found["fid"] == pytest.approx(0, abs=1e-6)
        assert found["resize"] == 32
        assert "images resized to 32 pixels" in found["note"]
    with pytest.raises(UserError, match="made with resize=32, not 48: use the same for both"):
        evaluate(str(tmp_path / "r.npz"), "resize=48")
    with pytest.raises(UserError, match="made with resize=32, not null"):
        evaluate(str(tmp_path / "r.npz"), "resize=null")
    with pytest.raises(UserError, match="resize=0 must be 1 or more"):
        evaluate(str(tmp_path / "r.npz"), "resize=0")


def test_statistics_that_do_not_say_are_accepted():
    statistics = Statistics(np.zeros(64), np.eye(64), None, {"features": "fashion_features"})
    assert Score(bundled(), statistics, resize=32).resize == 32
    assert Score(bundled(), Statistics(np.zeros(64), np.eye(64)), resize=32).resize == 32
