"""Files of `torch.save` that are made to crash a reader, to block it or to fill the memory."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.sources import state_dicts
from bdia_exp.sources.checkpoints import read
from tests.sources.pickled import Call

FORMATS = ["zipped", "streamed"]
HEADS = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def write(path: Path, objects: bytes, kind: str, method: int = zipfile.ZIP_STORED) -> Path:
    """A file of one storage, "0", of 1,000 float32 numbers, with this pickle."""
    numbers = struct.pack("<1000f", *range(1000))
    if kind == "streamed":
        heads = b"".join(pickle.dumps(head, 2) for head in HEADS)
        path.write_bytes(
            heads + objects + pickle.dumps(["0"], 2) + struct.pack("<q", 1000) + numbers
        )
        return path
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("net/data.pkl", objects)
        archive.writestr("net/data/0", numbers)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tensor(size: tuple = (1000,), count: int = 1000, key: str = "0") -> bytes:
    """The instructions for a tensor of the storage."""
    text = f"X{chr(len(key))}\0\0\0{key}".encode()
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\n" + text + b"X\3\0\0\0cpu"
    storage += number(count) + b"tQ"
    sizes = b"(" + b"".join(map(number, size)) + b"t"
    strides = b"(" + number(1) * len(size) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + sizes + strides + b"\x89}tR"
    )


def number(n: int) -> bytes:
    return b"\x8a\x10" + n.to_bytes(16, "little", signed=True)


def entry(name: str, value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode() + value + b"s"


START, DEEP = b"\x80\x02}", 50_000


@pytest.mark.parametrize("kind", FORMATS)
def test_the_files_of_these_tests_are_right(tmp_path, kind):
    path = write(tmp_path / "a.pt", START + entry("a", tensor()) + b".", kind)
    assert read(path).state["a"].tolist() == [*range(1000)]


TUPLES = b")" + b"\x85" * DEEP
LISTS = b"]" * DEEP + b"a" * (DEEP - 1)
BESIDE = {
    "a deep tuple as a key": TUPLES + b"Ns",
    "a deep tuple": entry("more", TUPLES),
    "a deep list": entry("more", LISTS),
    "deep dicts": entry("more", b"}" + b"K\0}" * DEEP + b"s" * DEEP),
    "a bytearray of a terabyte": entry(
        "more", b"cbuiltins\nbytearray\n" + number(1 << 40) + b"\x85R"
    ),
    "large numbers of one hash": b"".join(
        number(k * (2**61 - 1)) + b"Ns" for k in range(1, 10_000)
    ),
    "short strings of Python 2": b"U\4moreNs",
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("what", BESIDE)
def test_what_is_beside_the_weights_does_no_harm(tmp_path, kind, what):
    data = START + entry("state_dict", b"}" + entry("a", tensor())) + BESIDE[what] + b"."
    assert list(read(write(tmp_path / "a.pt", data, kind)).state) == ["a"]
    refusal(write(tmp_path / "a.pt", START + BESIDE[what] + b".", kind))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (entry("a", tensor((1 << 40,))), "reaches outside its 1000 numbers"),
        (entry("a", tensor((1000, 1 << 62))), "a"),
        (entry("a", tensor(count=1 << 40)), "not as many as the file states"),
        (entry("a", tensor(count=999)), "not as many as the file states"),
        (entry("a" * 301, tensor()), "longer than any name"),
        (b"".join(entry(f"a{k}", tensor()) for k in range(9)), "more numbers than the file"),
        (entry("a", b"NQ"), "damaged"),
    ],
)
def test_tensors_that_lie(tmp_path, kind, weights, told):
    assert told in refusal(write(tmp_path / "a.pt", START + weights + b".", kind))


def test_many_keys_of_the_same_large_list(tmp_path, monkeypatch):
    monkeypatch.setattr(state_dicts, "MAX_STEPS", 50_000)
    large = b"](" + b"K\0" * 10_000 + b"eq\x01"
    data = START + entry("x", large) + b"".join(entry(f"ema{k}", b"h\x01") for k in range(10_000))
    text = refusal(write(tmp_path / "a.pt", data + b".", "zipped"))
    assert "more than any file of weights" in text


def test_a_storage_that_is_not_there(tmp_path):
    data = START + entry("a", tensor(key="1")) + b"."
    for kind in FORMATS:
        text = refusal(write(tmp_path / "a.pt", data, kind))
        assert "not as many as the file states" in text or "damaged" in text


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_not_expanded(tmp_path, method):
    path = write(tmp_path / "a.pt", START + entry("a", tensor()) + b".", "zipped", method)
    assert "compressed or encrypted" in refusal(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/more", bytes(1 << 20))
    assert "compressed or encrypted" in refusal(path)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "not one of torch.save" in refusal(tmp_path / "a.pt")
    module = torch.jit.script(torch.nn.Linear(1, 1))
    module.save(str(tmp_path / "a.pt"))
    assert "refused" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", FORMATS)
def test_no_name_of_a_file_is_called(tmp_path, sentinel, kind):
    for objects in (
        pickle.dumps(Call(os.mkdir, str(sentinel)), 2),
        START + b"cos\nmkdir\nX\1\0\0\0aR" + b".",
        START + entry("a", b"cbuiltins\neval\nN\x85R") + b".",
    ):
        assert "nothing was executed" in refusal(write(tmp_path / "a.pt", objects, kind))


def test_a_changed_number_is_found(tmp_path):
    """The archive has a checksum of each storage."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(64.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<3f", 7, 8, 9))] ^= 1
    path.write_bytes(data)
    assert "is damaged or incomplete" in refusal(path)


def test_an_archive_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(64.0)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path / "a.pt").state["a"].tolist() == list(range(64))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_number_equals_torchs_reading(tmp_path, zipped):
    kinds = (
        "float32 float64 float16 bfloat16 float8_e4m3fn int64 int32 int16 int8 uint8 bool complex64"
    )
    kinds = kinds if zipped else kinds.replace("float8_e4m3fn ", "")
    whole = torch.arange(24.0).reshape(2, 3, 4) - 7
    state = {kind: whole.to(getattr(torch, kind)) for kind in kinds.split()}
    shared = {"part": whole[1, 1:], "turned": whole.transpose(0, 2), "one": whole[1, 2, 3]}
    state |= shared | {"none": torch.zeros(0, 3), "tied": whole}
    state["with an attribute"] = whole.clone()
    state["with an attribute"].note = "x"
    state = {f"net.{name}": value for name, value in state.items()}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    ours = read(tmp_path / "a.pt").state
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        wanted = value.float() if value.is_floating_point() else value
        assert torch.equal(ours[name], wanted)
        assert ours[name].dtype == wanted.dtype
        assert ours[name].is_contiguous()
