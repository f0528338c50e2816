"""Fixtures for the mathematics."""

import pytest

from tests.samplers.paper import VE, VP, Paper


@pytest.fixture(params=[VP, VE], ids=["vp", "ve"])
def paper(request):
    """BDIA's symbols, on VP levels and on EDM's."""
    return Paper(request.param)
