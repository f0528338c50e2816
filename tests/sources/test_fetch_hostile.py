"""Servers that send nothing, half of a file, too much, or something else than they say."""

import itertools

import pytest

from bdia_exp.sources import downloads, fetch
from tests.sources.web_server import DATA, KNOWN, MD5, NAME, SHA256, refusal


def answer(*headers: str, status: str = "200 OK", body=()) -> list[bytes]:
    head = "\r\n".join((f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""))
    return [head.encode("latin1"), *body]


def chunks(*pieces: bytes, end: bool = True) -> list[bytes]:
    coded = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    return coded + [b"0\r\n\r\n"] * end


CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture
def nothing_kept(folder):
    yield
    assert fetch.cached(NAME) is None
    assert not (folder / f"{NAME}.sha256").exists()


UNKNOWN = {}
NO_BODY = {
    "no length": answer(),
    "length 0": answer("Content-Length: 0"),
    "no chunk": answer(CHUNKED, body=chunks()),
}


@pytest.mark.parametrize("how", NO_BODY)
@pytest.mark.parametrize("known", [UNKNOWN, {"size": len(DATA)}, {"md5": MD5}])
def test_an_empty_body_is_no_file(site, folder, publish, nothing_kept, how, known):
    publish(**known)
    site.raw = lambda: NO_BODY[how]
    with refusal("not kept|could be cut without a sign|has 0 bytes"):
        fetch.get(NAME)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (answer(body=[DATA[:1000]]), f"does not say how long {NAME} is, so it could be cut"),
        (answer("Content-Length: -1", body=[DATA[:1000]]), "does not say how long"),
        (answer("Content-Length: 9" + "9" * 30, body=[DATA]), "no room left on the disk"),
        (answer(CHUNKED, body=chunks(DATA, end=False)), "was cut several times"),
        (answer(CHUNKED, body=[b"ffffff\r\n", DATA]), "was cut several times"),
        (answer(CHUNKED, body=[b"x\r\n", DATA]), "was cut several times"),
        (answer("Content-Length: 9", status="206 Partial Content", body=[b"123456789"]), "206"),
        (answer("Location: file:///etc/passwd", status="302 Found"), "cannot be reached"),
        (answer(f"Location: /v1/{NAME}", status="302 Found"), r"cannot be reached \(Exceeded"),
        ([b"\x1b[31m no HTTP at all\r\n\r\n"], "cannot be reached"),
    ],
)
def test_half_a_file_is_not_kept(site, folder, publish, nothing_kept, sent, told):
    site.raw = lambda: sent
    with refusal(told):
        fetch.get(NAME)


def test_chunks_are_a_whole_file(site, folder, publish):
    site.raw = lambda: answer(CHUNKED, body=chunks(DATA))
    assert fetch.get(NAME).read_bytes() == DATA


def test_a_hash_tells_a_whole_file_without_a_length(site, folder, publish, nothing_kept):
    publish(sha256=SHA256)
    site.raw = lambda: answer(body=[DATA])
    assert fetch.get(NAME).read_bytes() == DATA
    fetch.get(NAME).unlink()
    site.raw = lambda: answer(body=[DATA[:1000]])
    with refusal("and was not kept"):
        fetch.get(NAME)


@pytest.mark.parametrize("known", [KNOWN, {"sha256": SHA256}])
@pytest.mark.parametrize("headers", [(), (CHUNKED,)])
def test_a_body_without_end(site, folder, publish, nothing_kept, monkeypatch, known, headers):
    monkeypatch.setattr(downloads, "LARGEST", 2 * len(DATA))
    publish(**known)
    body = itertools.repeat(b"10000\r\n%s\r\n" % bytes(1 << 16) if headers else bytes(1 << 16))
    site.raw = lambda: itertools.chain(answer(*headers), body)
    most = known.get("size", 2 * len(DATA))
    with refusal(f"sends more than {most} bytes, and {NAME} was not kept"):
        fetch.get(NAME)
    assert not (folder / f"{NAME}.part").exists()
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>quota</html>", b"\xef\xbb\xbf\n <html>", b"<?xml"]
)
def test_a_web_page_that_is_sent_as_a_file(site, folder, publish, nothing_kept, page):
    site.data = page
    with refusal("has the text of a web page, and was not kept"):
        fetch.get(NAME)


def test_a_page_saved_by_hand(folder, publish):
    publish("page:https://drive.invalid/folder")
    folder.mkdir()
    for data, told in ((b" <html>", "the text of a web page"), (b"", "0 bytes")):
        (folder / NAME).write_bytes(data)
        with refusal(f"{NAME} has {told}.*: remove it"):
            fetch.get(NAME)
    assert not (folder / f"{NAME}.sha256").exists()


def test_what_a_server_says_is_printed_without_control_characters(site, folder, publish, capsys):
    """Escape codes can change a terminal's title, colours and text."""
    reason = "\x1b]0;owned\x07\x1b[31m\x9b2J" + "a" * 5000
    for sent in (
        answer(status=f"404 {reason}"),
        answer(f"Location: http://127.0.0.1:1/{reason}", status="302 Found"),
        answer(f"Location: {reason}://x", status="302 Found"),
        answer(CHUNKED, body=[b"\x1b[31m\r\n"]),
        [reason.encode("latin1") + b"\r\n\r\n"],
    ):
        site.raw = lambda sent=sent: sent
        with refusal(NAME) as refused:
            fetch.get(NAME)
        text = str(refused.value) + capsys.readouterr().err.replace("\n", "")
        assert text.isprintable()
        assert len(text) < 4000


def test_a_range_that_is_not_what_it_says(site, folder, publish, nothing_kept):
    """The first connection is cut; the next answers send another range, or too much."""
    publish(**KNOWN)
    part = f"bytes 1000-{len(DATA) - 1}/{len(DATA)}"
    begun = [*answer(f"Content-Length: {len(DATA)}", 'ETag: "one"'), DATA[:1000]]
    for headers, body in (
        ([f"Content-Range: {part}", 'ETag: "one"'], [DATA]),
        ([f"Content-Range: {part}", 'ETag: "one"'], itertools.repeat(DATA, 3)),
        ([f"Content-Range: {part}", 'ETag: "one"'], [DATA[::-1][1000:]]),
        (["Content-Range: bytes 0-9/10", 'ETag: "one"'], [DATA[:10]]),
        (["Content-Range: nonsense"], []),
    ):
        partial = [*answer(*headers, status="206 Partial Content"), *body]
        answers = iter([begun, *[partial] * 5])
        site.raw = lambda answers=answers: next(answers, begun)
        with refusal(NAME):
            fetch.get(NAME)
