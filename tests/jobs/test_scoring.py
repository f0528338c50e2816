"""The statistics of a reference set are computed once for its content."""

import numpy as np
import pytest
from PIL import Image

from bdia_exp.cli.configs import settings
from bdia_exp.jobs import scoring
from bdia_exp.store.files import save_image


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (70, 32, 32, 1), dtype=np.uint8)


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """Makes the scorer of a reference; `counted` says how often images became features."""
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    counted = []
    own = scoring.score_set
    monkeypatch.setattr(scoring, "score_set", lambda *given: counted.append(1) or own(*given))

    def score(reference, *words):
        asked = settings("sample", [f"reference='{reference}'", *words])
        return scoring.scorer_of(asked, "cpu", 64, scoring.listed(asked.metrics)).reference

    return score, counted


def test_the_same_content_is_computed_once(scored, images, tmp_path):
    score, counted = scored
    np.savez(tmp_path / "a.npz", images=images)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    first, second = score(tmp_path / "a.npz"), score(tmp_path / "b.npz")
    assert len(counted) == 1
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.cov, second.cov)
    assert first.count == second.count == 70
    score(tmp_path / "a.npz", "metrics=[fid,prc]")  # needs the features too
    assert len(counted) == 2
    images[3] ^= 1
    np.savez(tmp_path / "a.npz", images=images)
    assert not np.array_equal(score(tmp_path / "a.npz").mean, first.mean)
    assert len(counted) == 3


def test_a_folder_is_known_by_its_pictures_and_a_damaged_file_is_made_again(
    scored, images, tmp_path
):
    score, counted = scored
    for number, image in enumerate(images):
        save_image(tmp_path / "set" / f"{number}.png", Image.fromarray(image[:, :, 0]))
    first = score(tmp_path / "set")
    (tmp_path / "set").rename(tmp_path / "renamed")
    assert np.array_equal(score(tmp_path / "renamed").cov, first.cov)
    assert len(counted) == 1
    (kept,) = (tmp_path / "cache/references").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(score(tmp_path / "renamed").cov, first.cov)
    assert len(counted) == 2
    (tmp_path / "renamed/3.png").unlink()
    assert score(tmp_path / "renamed").count == 69


def test_a_cache_that_cannot_be_written_is_no_error(scored, images, tmp_path, capfd):
    score, counted = scored
    (tmp_path / "cache").write_text("a file")
    np.savez(tmp_path / "a.npz", images=images)
    assert score(tmp_path / "a.npz").count == 70
    assert "are not kept" in capfd.readouterr().out
    assert len(counted) == 1
