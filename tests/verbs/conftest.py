"""What the tests of several verbs share."""

from pathlib import Path

import pytest

from bdia_exp import batching
from tests.verbs.running import sample


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run of 40 images, the one that every other run must equal."""
    root = tmp_path_factory.mktemp("whole")
    sample(root, "images=40")
    return root


@pytest.fixture(scope="module")
def four_rows():
    """Batches are padded to 4 rows, not to 16: for tests that compare no other batch sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "ROWS", 4)
        yield


@pytest.fixture(scope="module")
def source(four_rows, tmp_path_factory) -> Path:
    """A run of three images with labels."""
    root = tmp_path_factory.mktemp("source") / "run"
    sample(root, "images=3", "nfe=5")
    return root
