"""Fixtures for what is loaded and fetched."""

import threading

import pytest

from bdia_exp.sources import downloads
from bdia_exp.sources.assets import ASSETS, Asset
from tests.sources.web_server import NAME, Site


@pytest.fixture
def sentinel(tmp_path):
    """A path that hostile code would create; the test fails if it is there at the end."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def site():
    """A web server with DATA at every address."""
    with Site() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache; nothing of the environment that these tests run in gets through."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("BDIA_EXP_OFFLINE", "BDIA_EXP_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "PAUSES", (0, 0, 0))
    return tmp_path / "cache"


@pytest.fixture
def publish(site, monkeypatch):
    """Makes NAME a published file, at the site unless told otherwise."""

    def publish(source=None, **known):
        asset = Asset(NAME, source or f"{site.url}/v1/{NAME}", "numbers (MIT)", **known)
        monkeypatch.setitem(ASSETS, NAME, asset)

    publish()
    return publish
