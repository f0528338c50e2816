"""fetch: what it brings, and what it names."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.verbs.fetch import fetch


@pytest.mark.quick
def test_fetch_brings_what_it_can_and_names_the_rest(tmp_path, monkeypatch, capsys):
    """From a mirror that is a folder of this machine, served on 127.0.0.1."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "BDIA_EXP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/edm-fid-ref-cifar10-32x32.npz").write_bytes(b"statistics")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("BDIA_EXP_MIRROR", f"http://127.0.0.1:{server.server_port}")
        given = settings("fetch", ["what=edm_cifar10"])
        listing = {
            "edm_cifar10": {
                "checkpoint": "fetch:edm-cifar10-32x32-cond-vp.pkl",
                "reference": "fetch:edm-fid-ref-cifar10-32x32.npz",
            }
        }
        with pytest.raises(UserError, match=r"cond-vp\.pkl answered 404"):
            fetch(given, listing)
        server.shutdown()
    assert "edm-fid-ref-cifar10-32x32.npz: 10 bytes" in capsys.readouterr().out
    assert (tmp_path / "cache/edm-fid-ref-cifar10-32x32.npz").read_bytes() == b"statistics"


def test_coco_is_two_files(tmp_path, monkeypatch):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"(?s)annotations_trainval2014\.zip is .*\n  val2014\.zip is"
    ):
        fetch(settings("fetch", ["what=coco_val2014"]), {})


def test_names_are_separated_by_commas_with_or_without_spaces():
    with pytest.raises(UserError, match="'nothing' is not a model"):
        fetch(settings("fetch", ["what='cifar10, nothing'"]), {})
    with pytest.raises(UserError, match="give what="):
        fetch(settings("fetch", ["what=','"]), {})
