"""What the tests of several verbs share."""

from pathlib import Path

import pytest

from tests.verbs.running import sample


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run of 40 images, the one that every other run must equal."""
    root = tmp_path_factory.mktemp("whole")
    sample(root, "images=40")
    return root
