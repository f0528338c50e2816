"""A web server of our own on 127.0.0.1, and the file that it publishes."""

import hashlib
import http.server
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

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
        self.raw: Callable[[], Iterable[bytes]] | None = None  # what is sent instead of an answer
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
        if site.raw:
            for piece in site.raw():
                self.wfile.write(piece)
                site.sent += len(piece)
            return None
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


def left(folder):
    """What the cache holds besides locks, which stay."""
    return sorted(f.name for f in folder.iterdir() if f.suffix != ".lock")


def refusal(match):
    """A user's error of one sentence."""
    return pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z).*{match}")


KNOWN = {"sha256": SHA256, "md5": MD5, "size": len(DATA)}
