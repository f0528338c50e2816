"""What the tests of several families share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(stable_diffusion, tmp_path_factory) -> Path:
    """tiny-sd as diffusers saves it."""
    from tests.models.tiny_sd import saved

    return saved(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))
