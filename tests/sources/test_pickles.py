"""Hostile and damaged pickles: nothing makes the reader execute anything."""

import codecs
import functools
import io
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from bdia_exp.sources import checkpoints, edm_pickles, pickles
from bdia_exp.sources.checkpoints import read
from tests.sources.pickled import (
    SONG,
    TINY,
    Call,
    Persistent,
    dump,
    edm,
    flip,
    network,
    refusal,
    write,
)


def valid(**changes) -> bytes:
    """The smallest file that reads, with other entries of the network's state."""
    state = dict(_parameters={}, _buffers={}, _modules={}, _init_kwargs={})
    return dump(dict(ema=Persistent("EDMPrecond", state | changes)))


def test_the_source_inside_is_not_run(tmp_path, sentinel, monkeypatch):
    monkeypatch.setattr(Persistent, "src", f"open({str(sentinel)!r}, 'w')")
    data = edm(TINY)
    assert str(sentinel).encode() in data
    read(write(tmp_path, data))


def test_forbidden_globals_are_named_and_not_called(tmp_path, sentinel):
    shell = f"touch {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    calls = {
        f"{os.name}.system": Call(os.system, shell),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "builtins.getattr": Call(getattr, int, "real"),
        "builtins.__import__": Call(__import__, "os"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(sentinel)]),
        "torch.serialization.load": Call(torch.load, str(sentinel)),
        "functools.partial": Call(functools.partial, os.system),
    }
    for name, call in calls.items():
        for protocol in (3, 4):  # by GLOBAL and by STACK_GLOBAL
            for place in (dict(ema=call), dict(loss_fn=[call]), call):
                text = refusal(tmp_path, dump(place, protocol))
                assert f"asks for {name}, which" in text
                assert "nothing was executed" in text


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils\n_rebuild_tensor_v2.__globals__",
        "torch\n_utils._rebuild_tensor_v2.__globals__",
        "torch._utils._rebuild_tensor_v2\n__globals__",
        "torch.storage\n_load_from_bytes.__globals__.__builtins__.eval",
        "collections\nOrderedDict.__init__.__globals__",
        "training.loss\nos.system",
        "\n",
    ],
)
def test_dotted_names_resolve_nothing(tmp_path, name):
    module, attribute = name.split("\n")
    by_line = b"\x80\x04c" + name.encode() + b"\n)R."
    texts = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, attribute))
    for data in (by_line, b"\x80\x04" + texts + b"\x93)R."):
        assert "nothing was executed" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "instruction",
    [
        b"\x82\x01",
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
        b"Px\n",
        b"(ios\nsystem\n",
        b"(o",
        b"\x97",
    ],
)
def test_other_instructions_are_refused(tmp_path, instruction):
    text = refusal(tmp_path, b"\x80\x04" + instruction + b".")
    assert "refused: no file of weights needs the pickle instruction" in text


def test_a_persistent_id_is_refused_outside_a_storage(tmp_path):
    assert "asks for pickle.persistent_id" in refusal(tmp_path, b"\x80\x04NQ.")


def test_build_touches_no_real_object(tmp_path):
    before = vars(torch._utils).copy()
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"]"):
        data = b"\x80\x04" + target + b"}\x8c\x08__code__K\x01sb."
        assert "damaged" in refusal(tmp_path, data)
    reduced = b"\x80\x04ccollections\nOrderedDict\n)R}\x8c\x05itemsK\x01sb."
    assert "no EDM checkpoint" in refusal(tmp_path, reduced)
    assert vars(torch._utils) == before


def test_hostile_bytes_inside_a_storage(tmp_path, sentinel):
    def tensor(data):
        source = Call(torch.storage._load_from_bytes, data)
        return Call(torch._utils._rebuild_tensor_v2, source, 0, (1,), (1,), False, {})

    evil = pickle.dumps(Call(os.system, f"touch {sentinel}"), 2)
    good = storage(torch.zeros(1))
    head = good[: good.index(b"\x80\x02(")]
    buffer = io.BytesIO()
    torch.save(torch.zeros(1), buffer)
    read(write(tmp_path, valid(_parameters={"w": tensor(good)})))
    told = "refused: it asks for posix.system"
    for data, said in [
        (evil, told),
        (head + evil, told),
        (good + evil, "another size"),
        (buffer.getvalue(), "damaged"),
        (good.replace(b"FloatStorage", b"QInt8Storage"), "refused: it asks for torch.QInt8Storage"),
        (good.replace(b"FloatStorage", b"BoolStorage\n"), "refused"),
        (good[:-1], "another size"),
        (storage(torch.zeros(0)), "is empty"),
        (b"", "damaged"),
        ([1], "damaged"),
    ]:
        assert said in refusal(tmp_path, valid(_parameters={"w": tensor(data)}))


def storage(tensor) -> bytes:
    """What torch itself pickles a tensor's storage to."""
    return tensor._typed_storage().__reduce__()[1][0]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2, -2), (1, 1)),
        (0, (2, 2), (3, 1)),
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (5,), (0,)),
        (0, (1 << 70,), (1,)),
        (0, (0,), (1,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 9, (1,) * 9),
        (0, (1,), (1 << 70,)),
        (0.0, (1,), (1,)),
        (0, "1", "1"),
        (0, (True,), (1,)),
        (0, 4, 1),
    ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path, offset, size, stride):
    source = Call(torch.storage._load_from_bytes, storage(torch.zeros(4)))
    call = Call(torch._utils._rebuild_tensor_v2, source, offset, size, stride, False, {})
    refusal(tmp_path, valid(_parameters={"w": call}))


def test_a_storage_may_not_lie_about_its_size(tmp_path):
    good = storage(torch.zeros(4))
    for count in (3, 5, 1 << 62, -1):
        data = good[:-24] + struct.pack("<q", count) + good[-16:]
        source = Call(torch.storage._load_from_bytes, data)
        call = Call(torch._utils._rebuild_tensor_v2, source, 0, (1,), (1,), False, {})
        assert "another size" in refusal(tmp_path, valid(_parameters={"w": call}))


DEEP = 100_000


@pytest.mark.parametrize(
    "deep",
    [
        b"]" * DEEP + b"a" * (DEEP - 1),
        b")" + b"\x85" * DEEP,
        b"}" + b"\x8c\x01a}" * DEEP + b"s" * DEEP,
        b"(" * DEEP + b"t" * DEEP,
        b"(" * DEEP,
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n\x94" + b"h\x00" * DEEP
        + b")R" + b"\x85R" * DEEP,
    ],
    ids=["lists", "tuples", "dicts", "marks", "open", "objects"],
)  # fmt: skip
def test_deep_nesting(tmp_path, deep):
    """Refused where it is looked at, ignored where it is not; never a crash."""
    refusal(tmp_path, b"\x80\x04" + deep + b".")
    refusal(tmp_path, b"\x80\x04}" + deep + b"K\x01s.")  # as a key: hashed by real unpicklers
    before, after = valid(_init_kwargs=77).split(b"K\x4d")
    refusal(tmp_path, before + deep + after)
    refusal(tmp_path, before + b"}\x8c\x01a" + deep + b"s" + after)


def test_deep_and_shared_modules(tmp_path):
    def module(children):
        return Persistent("Linear", dict(_parameters={}, _buffers={}, _modules=children))

    top = module({})
    for _ in range(40):
        top = module({"a": top})
    assert "nested too deep" in refusal(tmp_path, valid(_modules={"a": top}))
    assert "nested too deep" in refusal(tmp_path, valid(_modules={"a" * 400: module({})}))
    same = module({})
    assert "used twice" in refusal(tmp_path, valid(_modules={"a": same, "b": same}))
    assert "is no module" in refusal(tmp_path, valid(_modules={"a": [1]}))
    assert "is no tensor" in refusal(tmp_path, valid(_parameters={"a": [1]}))
    # Thousands of persistent objects, each the only module of the next.
    head, tail = valid(_modules={}).split(b"\x8c\x08_modules\x94}\x94")
    one = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x8c\x05state}"
    one += b"\x8c\x0b_parameters}s\x8c\x08_buffers}s\x8c\x08_modules}\x8c\x01a"
    data = (
        head
        + b"\x8c\x08_modules}\x8c\x01a"
        + one * 10_000
        + b"N"
        + b"sss\x85R" * 10_000
        + b"s"
        + tail
    )
    assert "nested too deep" in refusal(tmp_path, data)


def test_options_stay_small(tmp_path):
    laugh: list = [1]
    for _ in range(30):
        laugh = [laugh] * 10
    loop: list = []
    loop.append(loop)
    for value in (laugh, loop, [0] * 1000, 1 << 4000, "a" * 1000, b"a", {1: 2}, {3}.union):
        if callable(value):
            value = Persistent("x", {})
        refusal(tmp_path, valid(_init_kwargs=dict(a=value)))
    refusal(tmp_path, valid(_init_kwargs=[(((),), 1)]))
    for dtype in ("O8", "V8", "U4", "f8,f8"):
        call = Call(np.float64(0).__reduce__()[0], np.dtype(dtype), bytes(8))
        refusal(tmp_path, valid(_init_kwargs=dict(a=call)))


@pytest.mark.parametrize(
    "bomb",
    [
        b"Nr\xff\xff\xff\xff.",  # a memo index of 2**32
        b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",  # BINBYTES8
        b"\x8d" + struct.pack("<Q", (1 << 63) - 1) + b"x.",  # BINUNICODE8
        b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
        b"B\xff\xff\xff\xffx.",
        b"\x8b\xff\xff\xff\x7fx.",  # LONG4
        b"\x8b\xff\xff\xff\xffx.",
        b"\x95" + struct.pack("<Q", 1 << 50) + b"N.",  # a frame
        b"\x96" + struct.pack("<Q", 1 << 40) + b"x.",  # BYTEARRAY8
        b"h\x05.",
        b"R.",
        b".",
        b"t.",
        b"\x8c\x02\xff\xff.",
        b"}]Ns.",
        b"}Na.",
    ],
)
def test_lying_lengths_and_stray_instructions(tmp_path, bomb):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(tmp_path, b"\x80\x04" + bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_too_many_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    assert "over 1,000 instructions" in refusal(tmp_path, b"\x80\x04" + b"]" * 2000 + b".")


def test_the_limit_counts_all_pickles_of_a_file(tmp_path, monkeypatch):
    """The five pickles of each tensor too."""
    data = edm(TINY)
    outer = sum(1 for _ in pickletools.genops(data))
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", outer + 40 * len(network(TINY).state_dict()))
    assert "instructions" in refusal(tmp_path, data)
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", outer + 200 * len(network(TINY).state_dict()))
    read(write(tmp_path, data))


def test_text_that_becomes_bytes_is_used_once(tmp_path):
    """Else a small file could ask for the same large bytes again and again."""
    text = storage(torch.zeros(1)).decode("latin-1")

    def tensor():
        source = Call(torch.storage._load_from_bytes, Call(codecs.encode, text, "latin1"))
        return Call(torch._utils._rebuild_tensor_v2, source, 0, (1,), (1,), False, {})

    read(write(tmp_path, valid(_parameters={"a": tensor()})))
    both = valid(_parameters={"a": tensor(), "b": tensor()})
    assert "used twice" in refusal(tmp_path, both)


def test_real_files_stay_far_below_the_limit():
    """The published networks have at most 553 tensors; a tensor costs some 40 instructions."""
    data = edm(SONG)
    count = sum(1 for _ in pickletools.genops(data))
    assert count / len(network(SONG).state_dict()) * 553 < pickles.MAX_INSTRUCTIONS / 10


# --- damaged files -------------------------------------------------------------------------------


def test_every_prefix_is_refused(tmp_path):
    data = edm(TINY)
    chance = random.Random(0)
    cuts = {*range(1, 60), *chance.sample(range(len(data)), 100), len(data) - 1}
    for cut in cuts:
        refusal(tmp_path, data[:cut])


def test_flipped_bytes_either_read_or_are_refused(tmp_path):
    data = edm(TINY)
    structure = valid(_init_kwargs=TINY, _parameters={"w": torch.zeros(1)})
    reads = flip(data, 150, lambda changed: read(write(tmp_path, changed)))
    assert 0 < reads < 150
    flip(structure, 600, lambda changed: read(write(tmp_path, changed)))


def test_no_unpickler_is_used():
    source = "".join(Path(m.__file__).read_text() for m in (checkpoints, pickles, edm_pickles))
    for banned in ("torch.load(", "import pickle\n", "pickle.load", "eval(", "exec(", "getattr("):
        assert banned not in source
