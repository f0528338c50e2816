"""Fetching published files, against a web server of our own on 127.0.0.1."""

import errno
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from bdia_exp import fetch
from bdia_exp.assets import ASSETS, Asset
from bdia_exp.errors import UserError

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()
NAME = "weights.bin"


class Site(http.server.ThreadingHTTPServer):
    """A web server that can be told to misbehave, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.data = DATA
        self.headers = {"ETag": '"one"'}
        self.status = 200
        self.cuts: list[int] = []  # bytes after which the next connections are cut
        self.ranges = True  # whether Range is understood
        self.if_range = True  # whether If-Range is
        self.delay = 0.0  # seconds before an answer
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = 0  # bytes of bodies


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def handle(self):
        with suppress(ConnectionError):  # a client may hang up
            super().handle()

    def log_message(self, *args):
        pass

    def do_GET(self):
        site, asked = self.server, dict(self.headers)
        site.asked.append((self.path, asked))
        time.sleep(site.delay)
        if site.status != 200:
            return self.send_error(site.status)
        body, status, extra = site.data, 200, {}
        start = int(asked.get("Range", "bytes=0-")[6:-1])
        same = not site.if_range or asked.get("If-Range") in (None, site.headers.get("ETag"))
        if "Range" in asked and site.ranges and same:
            if start >= len(body):
                return self.send_error(416)
            extra = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            body, status = body[start:], 206
        self.send_response(status)
        headers = {"Content-Length": str(len(body))} | site.headers | extra
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if site.cuts:
            body = body[: site.cuts.pop(0)]
        site.sent += len(body)
        self.wfile.write(body)


@pytest.fixture
def site():
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
    monkeypatch.setattr(fetch, "PAUSES", (0, 0, 0))
    return tmp_path / "cache"


@pytest.fixture
def publish(site, monkeypatch):
    """Makes NAME a published file, at the site unless told otherwise."""

    def publish(source=None, **known):
        asset = Asset(NAME, source or f"{site.url}/v1/{NAME}", "numbers (MIT)", **known)
        monkeypatch.setitem(ASSETS, NAME, asset)

    publish()
    return publish


def left(folder):
    """What the cache holds besides locks, which stay."""
    return sorted(f.name for f in folder.iterdir() if f.suffix != ".lock")


def refusal(match):
    """A user's error of one sentence."""
    return pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z).*{match}")


KNOWN = {"sha256": SHA256, "md5": MD5, "size": len(DATA)}


# -- a file that comes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known", [KNOWN, {}, {"sha256": SHA256[:8]}, {"md5": MD5}, {"size": 1 << 20}]
)
def test_a_file_is_fetched_once(site, folder, publish, capsys, known):
    publish(**known)
    assert fetch.cached(NAME) is None
    path = fetch.get(NAME)
    assert path == folder / NAME == fetch.cached(NAME)
    assert path.read_bytes() == DATA
    told = capsys.readouterr().err
    assert all(word in told for word in (NAME, "numbers (MIT)", "1.05MB", site.url, str(folder)))
    assert fetch.get(NAME) == path
    assert len(site.asked) == 1
    assert capsys.readouterr().err == ""
    assert left(folder) == ([NAME] if known is KNOWN else [NAME, f"{NAME}.sha256"])


def test_without_a_length_the_end_of_the_chunks_is_the_end(site, folder, publish, monkeypatch):
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (DATA[:1000], DATA[1000:], b""))
    site.data = chunks
    site.headers = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    assert fetch.get(NAME).read_bytes() == DATA


def test_a_body_is_kept_as_it_was_sent(site, folder, publish):
    """Some servers declare a .tgz to be a gzipped .tar; what is kept is the .tgz."""
    site.headers |= {"Content-Encoding": "gzip", "Content-Type": "application/x-tar"}
    assert fetch.get(NAME).read_bytes() == DATA


def test_mirror(site, folder, publish, monkeypatch):
    """A mirror serves whatever the source is: a URL, a package index, a page."""
    monkeypatch.setenv("BDIA_EXP_MIRROR", f"{site.url}/base/")
    for source in ("https://assets.invalid/x?y=z", "pip:weights==1", "page:https://assets.invalid"):
        publish(source)
        (folder / NAME).unlink(missing_ok=True)
        assert fetch.get(NAME).read_bytes() == DATA
    assert [path for path, _ in site.asked] == [f"/base/{NAME}"] * 3


def test_proxy(site, folder, publish, monkeypatch):
    """The name cannot be resolved here: only the proxy can have brought it."""
    monkeypatch.setenv("http_proxy", site.url)
    publish(f"http://assets.invalid/{NAME}", **KNOWN)
    assert fetch.get(NAME).read_bytes() == DATA
    assert site.asked[0][0] == f"http://assets.invalid/{NAME}"


def test_two_processes_fetch_it_once(site, folder, publish):
    site.delay = 2
    code = (
        "import sys; from bdia_exp import fetch; from bdia_exp.assets import ASSETS, Asset\n"
        "ASSETS['weights.bin'] = Asset('weights.bin', sys.argv[1], 'numbers')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(fetch.get('weights.bin').stat().st_size)"
    )
    command = [sys.executable, "-c", code, f"{site.url}/{NAME}"]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in "ab"
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outputs] == [f"{len(DATA)}\n"] * 2
    assert sum("waiting for another process" in err for _, err in outputs) == 1
    assert len(site.asked) == 1
    assert left(folder) == [NAME, f"{NAME}.sha256"]


# -- a connection that is cut --------------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_was(site, folder, publish):
    site.cuts = [300_000, 1, 200_000]
    assert fetch.get(NAME).read_bytes() == DATA
    asked = [(h.get("Range"), h.get("If-Range")) for _, h in site.asked]
    assert asked == [
        (None, None),
        ("bytes=300000-", '"one"'),
        ("bytes=300001-", '"one"'),
        ("bytes=500001-", '"one"'),
    ]
    assert site.sent == len(DATA)
    assert left(folder) == [NAME, f"{NAME}.sha256"]


def test_what_came_is_kept_for_the_next_run(site, folder, publish):
    site.cuts = [300_000, 0, 0, 0]
    with refusal("was cut again and again .*run the same command later, it goes on where it was"):
        fetch.get(NAME)
    assert left(folder) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert fetch.cached(NAME) is None
    assert fetch.get(NAME).read_bytes() == DATA
    assert site.sent == len(DATA)
    assert left(folder) == [NAME, f"{NAME}.sha256"]


def test_without_an_etag_the_date_will_do(site, folder, publish):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    site.headers, site.if_range = {"ETag": 'W/"weak"', "Last-Modified": date}, False
    site.cuts = [300_000]
    assert fetch.get(NAME).read_bytes() == DATA
    assert site.asked[1][1]["If-Range"] == date
    assert site.sent == len(DATA)


def test_without_any_mark_only_a_hash_allows_to_go_on(site, folder, publish):
    site.headers, site.cuts = {}, [300_000]
    assert fetch.get(NAME).read_bytes() == DATA
    assert "Range" not in site.asked[1][1]
    (folder / NAME).unlink()
    publish(**KNOWN)
    site.cuts = [300_000]
    assert fetch.get(NAME).read_bytes() == DATA
    assert site.asked[3][1]["Range"] == "bytes=300000-"


@pytest.mark.parametrize("how", ["if-range", "no if-range", "no range", "shorter", "no note"])
def test_what_cannot_be_gone_on_with_is_started_over(site, folder, publish, how):
    site.cuts = [300_000, 0, 0, 0]
    with refusal("cut"):
        fetch.get(NAME)
    if how == "no range":
        site.ranges = False
    elif how == "no note":
        (folder / f"{NAME}.part.json").write_text("{")
    else:
        site.data = DATA[::-1] if how != "shorter" else DATA[:200_000]
        site.headers = {"ETag": '"two"' if how != "shorter" else '"one"'}
        site.if_range = how == "if-range"
    assert fetch.get(NAME).read_bytes() == site.data
    assert left(folder) == [NAME, f"{NAME}.sha256"]


def test_all_of_it_is_there_already(site, folder, publish):
    """A run killed between the last byte and the end asks for nothing more."""
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(DATA)
    (folder / f"{NAME}.part.json").write_text(f'{{"size": {len(DATA)}, "mark": ""}}')
    assert fetch.get(NAME).read_bytes() == DATA
    assert not site.asked
    assert left(folder) == [NAME, f"{NAME}.sha256"]


def test_a_length_that_never_comes(site, folder, publish):
    site.headers |= {"Content-Length": str(len(DATA) + 1)}
    with refusal("was cut again and again"):
        fetch.get(NAME)
    assert fetch.cached(NAME) is None


def test_a_server_that_falls_silent(site, folder, publish, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", (5, 0.05))
    site.delay = 0.5
    with refusal(r"cannot be reached \(Read timed out"):
        fetch.get(NAME)


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
    with refusal("has 1048576 bytes, not 1000, and was not kept"):
        fetch.get(NAME)
    assert left(folder) == []


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
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
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
        patch.setattr(fetch, "open", full, raising=False)
        with refusal(f"no room left on the disk for .* .{os.strerror(errno.ENOSPC)}"):
            fetch.get(NAME)
    assert fetch.get(NAME).read_bytes() == DATA


def test_a_cache_that_cannot_be_written(site, tmp_path, folder, publish, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "file" / "cache"))
    with refusal("cannot be read or written .*: set BDIA_EXP_CACHE to a folder of yours"):
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


# -- a wheel -------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels for pip, the only one that it knows of."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        info = "tiny_weights-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_a_wheel_comes_from_the_users_own_index(folder, publish, index):
    publish("pip:tiny-weights==1.0")
    [wheel] = index.iterdir()
    assert fetch.get(NAME).read_bytes() == wheel.read_bytes()
    assert left(folder) == [NAME, f"{NAME}.sha256"]


def test_a_wheel_that_does_not_come(folder, publish, index):
    publish("pip:tiny-weights==2.0")
    with refusal(r"pip could not download tiny-weights==2.0 \(No matching distribution .*\): look"):
        fetch.get(NAME)
    publish("pip:tiny-weights==1.0", sha256="0" * 64)
    with refusal("and was not kept"):
        fetch.get(NAME)
    assert left(folder) == []


# -- the list ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSETS)
def test_assets_are_well_formed(name):
    asset = ASSETS[name]
    assert asset.name == name == Path(name).name
    safe = ("https://", "pip:", "page:https://")
    assert asset.source.startswith(safe) or len(asset.sha256) == 64  # then any road will do
    assert re.fullmatch("[0-9a-f]{0,64}", asset.sha256)
    assert re.fullmatch("([0-9a-f]{32})?", asset.md5)
    assert re.search(r"\(.+\)$", asset.about)  # its licence
