"""Settings for all tests."""

import pytest
import torch

torch.set_num_threads(1)  # the tensors are small; leave the other cores to other test processes


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
