"""Folders of the Hugging Face hub, against a server on 127.0.0.1 that speaks as much of its API."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from bdia_exp.errors import UserError
from bdia_exp.sources import checkpoints, hub

constants = pytest.importorskip("huggingface_hub.constants")

REPO, REVISION = "someone/tiny-diffusion", "0123456789abcdef" * 2 + "01234567"
SPEC = f"{REPO}@{REVISION}"
WANTED = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b'{"a": 1}',
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "unet/config.json": b'{"in_channels": 4}',
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 3000,
    "vae/config.json": b"{ }",
    "vae/diffusion_pytorch_model.bin": b"vae" * 2000,  # there is no other
    "text_encoder/config.json": b"{  }",
    "text_encoder/model.safetensors": b"text" * 1000,
}
OTHERS = [
    *("README.md", ".gitattributes", "v2-1_512-ema-pruned.ckpt", "v2-1_512-ema-pruned.safetensors"),
    *(
        f"unet/diffusion_pytorch_model.{kind}"
        for kind in ("bin", "fp16.safetensors", "non_ema.bin")
    ),
    *("unet/openvino_model.bin", "vae/model.onnx", "text_encoder/pytorch_model.bin"),
    *("text_encoder/flax_model.msgpack", "safety_checker/config.json", "tokenizer/run.py"),
    *("safety_checker/model.safetensors", "deep/er/config.json", "scheduler/model.pkl"),
]
FILES = WANTED | dict.fromkeys(OTHERS, b"not to be fetched")


def is_lfs(name: str) -> bool:
    return Path(name).suffix in (".safetensors", ".bin", ".ckpt", ".onnx", ".msgpack")


class Hub(http.server.ThreadingHTTPServer):
    """The hub with one model, remembering what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = dict(FILES)
        self.sent = {}  # what comes instead of what is published
        self.asked: list[str] = []
        self.refusal: tuple[int, str] | None = None  # status, code

    def about(self, name: str) -> dict:
        data = self.files[name]
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        told = {"size": len(data), "blobId": git, "oid": git}
        if is_lfs(name):
            sha256 = hashlib.sha256(data).hexdigest()
            lfs = {"size": len(data), "sha256": sha256, "oid": sha256, "pointerSize": 130}
            told |= {"lfs": lfs, "blobId": "0" * 40}
        return told


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def handle(self):
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *args):
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        site, (path, _, _) = self.server, self.path.partition("?")
        site.asked.append(f"{self.command} {path}")
        if site.refusal:
            status, code = site.refusal
            return self.answer(b"{}", status, X_Error_Code=code, X_Error_Message="told so")
        if not path.removeprefix("/api/models").startswith(f"/{REPO}/"):
            return self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
        if REVISION not in path:
            return self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        if path == f"/api/models/{REPO}/revision/{REVISION}":
            rows = [{"rfilename": name, **site.about(name)} for name in site.files]
            return self.answer(json.dumps({"id": REPO, "sha": REVISION, "siblings": rows}).encode())
        if path == f"/api/models/{REPO}/tree/{REVISION}":
            rows = [{"type": "file", "path": name, **site.about(name)} for name in site.files]
            return self.answer(json.dumps(rows).encode())
        name = path.removeprefix(f"/{REPO}/resolve/{REVISION}/")
        if name not in site.files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        told, linked = site.about(name), {}
        if is_lfs(name):
            linked = {"X_Linked_Etag": f'"{told["lfs"]["sha256"]}"'}
            linked["X_Linked_Size"] = str(told["size"])
        body = site.sent.get(name, site.files[name])
        self.answer(body, ETag=f'"{told["oid"]}"', X_Repo_Commit=REVISION, **linked)

    do_HEAD = do_GET  # noqa: N815


def point_to(address: str, monkeypatch) -> None:
    """As HF_ENDPOINT does when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point_to(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The cache."""
    monkeypatch.delenv("BDIA_EXP_OFFLINE", raising=False)
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def held(snapshot: Path) -> dict[str, bytes]:
    files = (path for path in snapshot.rglob("*") if path.is_file())
    return {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in files}


def refusal(match: str):
    """A user's error of one sentence."""
    return pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z).*{match}")


def test_what_is_needed_comes_once(site, folder, capsys):
    assert hub.cached(SPEC) is None
    snapshot = hub.get(SPEC)
    assert held(snapshot) == WANTED
    assert folder / "hub" in snapshot.parents
    assert snapshot.name == REVISION
    assert f"fetching {REPO} from the Hugging Face hub: 10 files, 22.1kB" in capsys.readouterr().err
    asked = len(site.asked)
    assert hub.cached(SPEC) == hub.get(SPEC) == snapshot
    assert len(site.asked) == asked


@pytest.mark.parametrize("text", ["[]", "{}", '{"unet": 1'])
def test_what_is_not_known_to_be_whole_comes_again(site, folder, text):
    snapshot = hub.get(SPEC)
    hub._record(snapshot).write_text(text)
    assert hub.cached(SPEC) is None
    assert hub.get(SPEC) == hub.cached(SPEC) == snapshot


def test_it_is_a_checkpoint_like_others(site, folder):
    assert checkpoints.present(f"hub:{SPEC}") is None
    snapshot = checkpoints.locate(f"hub:{SPEC}")
    assert checkpoints.present(f"hub:{SPEC}") == snapshot
    names = [name for name in WANTED if is_lfs(name)]
    names.sort(key=lambda name: ("unet", "vae", "text_encoder").index(name.partition("/")[0]))
    names += sorted(n for n in WANTED if (n.endswith(".json") and "/" in n) or "tokenizer" in n)
    digests = [hashlib.sha256(WANTED[name]).hexdigest() for name in names]
    assert checkpoints.sha256(snapshot) == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert checkpoints.sha256(snapshot / "unet") == digests[0]
    (snapshot / "vae/diffusion_pytorch_model.bin").unlink()
    with refusal("vae cannot be read: a folder must hold diffusion_pytorch_model.safetensors or"):
        checkpoints.sha256(snapshot)


def test_one_network(site, folder):
    site.files = {
        "config.json": b"{}",
        "diffusion_pytorch_model.safetensors": b"control",
        "diffusion_pytorch_model.bin": b"older",
        "diffusion_pytorch_model.fp16.safetensors": b"half",
        "images/config.json": b"{}",
    }
    snapshot = hub.get(SPEC)
    assert held(snapshot).keys() == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert checkpoints.sha256(snapshot) == hashlib.sha256(b"control").hexdigest()


def test_weights_in_several_files(site, folder):
    shards = {
        f"unet/diffusion_pytorch_model-0000{k}-of-00002.safetensors": b"unet%d" % k for k in (1, 2)
    }
    names = {name.partition("/")[2]: name.partition("/")[2] for name in shards}
    index = json.dumps({"weight_map": names}).encode()
    shards["unet/diffusion_pytorch_model.safetensors.index.json"] = index
    whole = "unet/diffusion_pytorch_model.safetensors"
    site.files = {name: data for name, data in FILES.items() if name != whole} | shards
    site.files["unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors"] = b"half"
    snapshot = hub.get(SPEC)
    assert held(snapshot) == {n: data for n, data in WANTED.items() if n != whole} | shards
    assert len(checkpoints.sha256(snapshot)) == 64
    (snapshot / next(iter(shards))).unlink()
    with refusal("unet lacks diffusion_pytorch_model-00001-of-00002.safetensors"):
        checkpoints.sha256(snapshot)
    assert hub.cached(SPEC) is None


def test_one_network_in_several_files(site, folder):
    names = ["diffusion_pytorch_model-00001-of-00002.bin"]
    names += [
        "diffusion_pytorch_model-00002-of-00002.bin",
        "diffusion_pytorch_model.bin.index.json",
    ]
    site.files = dict.fromkeys(["config.json", *names], b"{}")
    assert held(hub.get(SPEC)).keys() == {"config.json", *names}


def test_a_model_of_another_layout(site, folder):
    site.files = {"config.json": b"{}", "model.safetensors": b"a language model"}
    with refusal("neither a pipeline nor a network in diffusers' layout: .*; give another model"):
        hub.get(SPEC)
    assert not any("resolve" in asked for asked in site.asked)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_a_file_that_is_not_the_published_one(site, folder, name):
    site.sent = {name: FILES[name][:-1] + b"!"}
    for _ in "again", "and again":
        with refusal(
            f"the downloaded {name} of {REPO} has .*, not [0-9a-f]+, and was not kept: try"
        ):
            hub.get(SPEC)
        assert hub.cached(SPEC) is None
        left = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        assert site.sent[name] not in left
    site.sent = {}
    assert held(hub.get(SPEC)) == WANTED


def test_a_file_that_is_lost_comes_again(site, folder):
    snapshot = hub.get(SPEC)
    path = snapshot / "unet/diffusion_pytorch_model.safetensors"
    for damage in (hub._remove, lambda path: path.resolve().unlink()):
        damage(path)
        assert hub.cached(SPEC) is None
        assert held(hub.get(SPEC)) == WANTED


def test_a_file_behind_several_links_is_removed_with_them(tmp_path):
    """Newer versions of the library keep one copy of a file for several models."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/blob").write_bytes(b"not what was published")
    (tmp_path / "etag").symlink_to("shared/blob")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "etag")
    hub._remove(tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.rglob("*")] == ["shared"]


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
@pytest.mark.parametrize("stated", [{"size": 5}, {"lfs": None, "blobId": None}])
def test_a_hub_that_states_no_hash_or_another_size(site, folder, monkeypatch, name, stated):
    about = site.about
    monkeypatch.setattr(site, "about", lambda n: about(n) | (stated if n == name else {}))
    with refusal(REPO):
        hub.get(SPEC)
    assert hub.cached(SPEC) is None


def test_half_a_download_is_none(site, folder):
    name = "vae/diffusion_pytorch_model.bin"
    site.sent = {name: FILES[name][:100]}
    with refusal(REPO):
        hub.get(SPEC)
    assert hub.cached(SPEC) is None
    site.sent = {}
    assert held(hub.get(SPEC)) == WANTED


def test_offline(site, folder, monkeypatch):
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    with refusal(f"hub:{SPEC} is not here and BDIA_EXP_OFFLINE is set: run .* copy {folder}/hub/"):
        hub.get(SPEC)
    assert not site.asked
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "0")
    snapshot = hub.get(SPEC)
    shutil.move(folder, folder.with_name("moved"))  # to another machine, say
    monkeypatch.setenv("BDIA_EXP_CACHE", str(folder.with_name("moved")))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert hub.get(SPEC).relative_to(folder.with_name("moved")) == snapshot.relative_to(folder)
    assert held(hub.get(SPEC)) == WANTED


def test_the_librarys_own_offline_switch(site, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refusal(f"{REPO} cannot be fetched from the hub .*offline"):
        hub.get(SPEC)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (REPO, "it names no commit: write hub:ORG/NAME@REVISION .*40 hexadecimal digits"),
        (f"{REPO}@main", f"'main' is no commit: write .*huggingface.co/{REPO}/commits/main$"),
        (f"{REPO}@{REVISION[:7]}", "'0123456' is no commit"),
        (f"{REPO}@{REVISION.upper()}", "is no commit"),
        (f"../../{REPO}@{REVISION}", "write hub:ORG/NAME@REVISION"),
        (f"sd@{REVISION}", "write hub:ORG/NAME@REVISION"),
        ("", "write hub:ORG/NAME@REVISION"),
    ],
)
def test_a_commit_has_to_be_named(site, folder, spec, told):
    with refusal(told):
        checkpoints.locate(f"hub:{spec}")
    assert checkpoints.present(f"hub:{spec}") is None
    assert not site.asked


@pytest.mark.parametrize(
    ("spec", "answer", "told"),
    [
        (f"{REPO}@{'f' * 40}", None, f"{REPO} has no commit f+: take one from https://.*/{REPO}/"),
        (f"some/thing@{REVISION}", None, "the hub shows no model some/thing: look at its name, or"),
        (SPEC, (401, ""), f"the hub shows no model {REPO}: .*set HF_TOKEN"),
        (SPEC, (403, "GatedRepo"), f"{REPO} is gated: accept its terms at .*{REPO} and set HF_TOK"),
        (SPEC, (500, ""), f"{REPO} cannot be fetched from the hub .*500.*: look at the network"),
    ],
)
def test_refusals(site, folder, spec, answer, told):
    site.refusal = answer
    with refusal(told):
        hub.get(spec)
    assert hub.cached(spec) is None


def test_unreachable(site, folder, monkeypatch):
    for address in ("http://127.0.0.1:1", "http://hub.invalid"):
        point_to(address, monkeypatch)
        with refusal(f"{REPO} cannot be fetched .*look at .*HF_ENDPOINT, or copy {folder}"):
            hub.get(SPEC)


def test_a_cache_that_cannot_be_written(site, folder, tmp_path):
    folder.write_text("in the way")
    with refusal(f"{folder}.* cannot be read or written .*: set BDIA_EXP_CACHE"):
        hub.get(SPEC)


def test_no_room(site, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28), "x")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with refusal(f"no room left on the disk for {REPO} .*: free some, or set BDIA_EXP_CACHE"):
        hub.get(SPEC)


def test_without_the_library(site, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with refusal(r"huggingface_hub is needed here .*pip install '.\[sd\]'"):
        hub.get(SPEC)


def test_the_librarys_mirror_switch_and_two_processes(site, folder):
    """HF_ENDPOINT is read when the library is imported."""
    code = f"from bdia_exp.sources import hub; print(hub.get({SPEC!r}))"
    environment = os.environ | {"HF_ENDPOINT": site.url}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in "ab"
    ]
    outputs = {process.communicate(timeout=120)[0].decode() for process in processes}
    assert outputs == {f"{hub.cached(SPEC)}\n"}
    assert held(hub.cached(SPEC)) == WANTED
    weights = f"GET /{REPO}/resolve/{REVISION}/unet/diffusion_pytorch_model.safetensors"
    assert site.asked.count(weights) == 1
