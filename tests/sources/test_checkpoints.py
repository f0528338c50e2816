"""The checkpoint reader: what it reads back exactly, and that nothing makes it execute anything."""

import contextlib
import functools
import io
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bdia_exp import checkpoints, pickles
from bdia_exp.checkpoints import Checkpoint, load_into, locate, read, sha256
from bdia_exp.errors import UserError
from bdia_exp.models.edm import EDMPrecond

SONG = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=3,
    model_type="SongUNet",
    model_channels=8,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    augment_dim=9,
)
ADM = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=3,
    use_fp16=True,
    model_type="DhariwalUNet",
    model_channels=64,
    channel_mult=[1, 1],
    num_blocks=1,
    attn_resolutions=[4],
)
TINY = dict(SONG, model_channels=4, channel_mult=[1], attn_resolutions=[], augment_dim=0)


# --- files of the published structure -----------------------------------------------------------


class Persistent:
    """Pickles as an object of EDM's `persistent_class` does, source text and all."""

    src = "raise SystemExit('the source inside the file was run')"

    def __init__(self, class_name: str, state: dict):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = dict(type="class", version=6, module_src=self.src, class_name=self.class_name)
        function = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        return function, (dict(meta, state=self.state),)


class Call:
    """Pickles as a call of anything, which is how a hostile pickle is made."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def persistent(module: nn.Module, **attributes) -> object:
    """A module of ours in the form EDM's pickles have; containers of torch stay what they are."""
    state = dict(module.__dict__, **attributes)
    state["_modules"] = {k: m and persistent(m) for k, m in module._modules.items()}
    if type(module).__module__.startswith("torch.nn"):
        plain = type(module)()
        plain.__dict__.update(state)
        return plain
    state |= dict(_init_args=(), skip_scale=np.sqrt(0.5))
    return Persistent(type(module).__name__, state | attributes)


def dump(thing: object, protocol: int = 4) -> bytes:
    """Pickles with EDM's own modules standing in for the time of it."""
    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"]
    fakes = {name: types.ModuleType(name) for name in names}
    for function, name in [(_reconstruct_persistent_obj, names[1]), (EasyDict, names[3])]:
        function.__module__ = name
        setattr(fakes[name], function.__name__, function)
    sys.modules.update(fakes)
    try:
        return pickle.dumps(thing, protocol)
    finally:
        for name in names:
            del sys.modules[name]


def _reconstruct_persistent_obj(meta):
    raise AssertionError("called")


class EasyDict(dict):
    pass


def network(config: dict, seed: int = 0) -> EDMPrecond:
    torch.manual_seed(seed)
    net = EDMPrecond(**config).eval().requires_grad_(False)
    for tensor in net.state_dict().values():
        tensor.normal_(std=0.1)  # layers that start at zero would hide their errors
    return net


def edm(config: dict, **attributes) -> bytes:
    options = EasyDict(dropout=0.0, path=EasyDict(a=(1, 2)))
    top = persistent(network(config), _init_kwargs=config, **attributes)
    loss = Persistent("EDMLoss", dict(P_mean=-1.2))
    return dump(dict(ema=top, loss_fn=loss, augment_pipe=None, dataset_kwargs=options))


def write(folder: Path, data: bytes, name: str = "net.pkl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(folder: Path, data: bytes) -> str:
    """The sentence with which the file is refused; nothing but UserError may come out."""
    with pytest.raises(UserError) as caught:
        read(write(folder, data))
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


# --- reading back --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SONG, ADM, TINY], ids=["SongUNet", "DhariwalUNet", "tiny"])
def test_an_edm_pickle_comes_back_bit_for_bit(tmp_path, config):
    path = write(tmp_path, edm(config))
    file, net = read(path), network(config)
    assert {k: file.config[k] for k in config} == config
    assert file.config["sigma_data"] == 0.5
    assert list(file.state) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert torch.equal(file.state[name], tensor)
        assert file.state[name].dtype == torch.float32
        assert file.state[name].is_contiguous()
    assert file.sha256 == sha256(path)
    assert file.path == path
    assert file.record == {}

    again = EDMPrecond(**file.config).eval()
    load_into(again, file)
    x, labels = torch.randn(2, 1, 8, 8), torch.eye(3)[:2]
    assert torch.equal(again(x, 0.7, labels), net(x, 0.7, labels))


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_numpy_scalars_become_numbers(tmp_path, core):
    asked = dict(TINY, dropout=np.float64(0.13), augment_dim=np.int64(0), channel_mult=(1,))
    data = edm(asked, sigma_data=np.float32(0.25))
    written = np.float64.__reduce__(np.float64(0))[0].__module__.encode()  # by numpy's version
    name = b"numpy." + core + b".multiarray"
    data = data.replace(
        b"\x8c" + bytes([len(written)]) + written, b"\x8c" + bytes([len(name)]) + name
    )
    config = read(write(tmp_path, data)).config
    assert name in data
    assert (config["dropout"], config["augment_dim"], config["sigma_data"]) == (0.13, 0, 0.25)
    assert {type(config[k]) for k in ("dropout", "sigma_data")} == {float}
    assert config["channel_mult"] == [1]


def test_positional_arguments_are_named_and_attributes_win(tmp_path):
    rest = {k: v for k, v in TINY.items() if k not in ("img_resolution", "img_channels")}
    top = persistent(network(TINY), _init_args=(8, 5), _init_kwargs=rest, sigma_data=1.0)
    config = read(write(tmp_path, dump(dict(ema=top)))).config
    assert (config["img_resolution"], config["img_channels"], config["sigma_data"]) == (8, 1, 1.0)


def test_other_layouts_and_precisions_of_a_tensor(tmp_path):
    net = network(TINY)
    state = net.state_dict()
    layer = net.model.map_layer0
    layer.weight.data = layer.weight.data.t().contiguous().t()
    layer.bias.data = torch.cat([torch.ones(3), layer.bias.data, torch.ones(2)])[3:-2]
    net.model.map_layer1.weight.data = net.model.map_layer1.weight.data.half()
    net.model.map_layer1.bias.data = net.model.map_layer1.bias.data.double()
    top = persistent(net, _init_kwargs=EasyDict(TINY))
    file = read(write(tmp_path, dump(dict(ema=top))))
    state["model.map_layer1.weight"] = state["model.map_layer1.weight"].half().float()
    for name, tensor in file.state.items():
        assert torch.equal(tensor, state[name])
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_other_protocols(tmp_path, protocol):
    top = Persistent("EDMPrecond", dict(_parameters={}, _buffers={}, _modules={}, _init_kwargs={}))
    data = dump(dict(ema=top, dataset_kwargs=EasyDict(a=1)), protocol)
    assert read(write(tmp_path, data)).state == {}


def test_our_own_safetensors(tmp_path):
    net = network(TINY)
    path = tmp_path / "mini.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    beside = tmp_path / "mini.json"
    with pytest.raises(UserError, match=r"mini\.json is missing"):
        read(path)
    for wrong in ["[]", "{}", '{"network": 3}', '{"network": {}, "training": 1}', '{"network": {']:
        beside.write_text(wrong)
        with pytest.raises(UserError, match=r"mini\.json beside it is not"):
            read(path)
    beside.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read(path)
    beside.write_text(json.dumps({"network": TINY, "training": {"images": 7}}))
    file = read(path)
    assert file.config == TINY
    assert file.record == {"images": 7}
    load_into(EDMPrecond(**file.config), file)
    data = path.read_bytes()
    for cut in (0, 5, 100, len(data) - 1):
        write(tmp_path, data[:cut], path.name)
        with pytest.raises(UserError, match="damaged or incomplete"):
            read(path)
    flip(data, 100, lambda changed: read(write(tmp_path, changed, path.name)))


# --- fitting and finding -------------------------------------------------------------------------


def test_load_into_says_what_does_not_fit():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {"0.weight": torch.zeros(2, 3), "0.bias": torch.tensor([0.0, torch.nan])}
    state |= {f"x{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(UserError) as caught:
        load_into(net, Checkpoint({}, state, "", Path("a.pkl")))
    text = str(caught.value)
    assert text == (
        "a.pkl does not fit this network; missing: 1.weight, 1.bias; unexpected: x0, x1, x2 and 6 "
        "more; of another shape: 0.weight [2, 3], not [2, 2]; not finite: 0.bias"
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_locate(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, b"", "a.safetensors")
    assert locate("bundled:a.safetensors") == path == locate(str(path))
    assert locate("~/a.safetensors") == path
    wrong = [
        "bundled:b",
        f"bundled:../{tmp_path.name}/a.safetensors",
        "https://x/y.pkl",
        "a\0",
        "~~/",
    ]
    for name in [*wrong, "a" * 5000]:
        with pytest.raises(UserError, match=r"known: a\.safetensors|nothing is at"):
            locate(name)


def test_what_is_no_checkpoint_is_named(tmp_path):
    assert "empty" in refusal(tmp_path, b"")
    assert "a web page" in refusal(tmp_path, b"\n<!DOCTYPE html><html>")
    assert "a zip archive" in refusal(tmp_path, b"PK\x03\x04" + bytes(40))
    assert "not a pickle" in refusal(tmp_path, b"(lp0\nI1\na.")
    assert "holds list" in refusal(tmp_path, dump([1]))
    assert "the entries G, D, G_ema and 1 more" in refusal(
        tmp_path, dump(dict(G=1, D=2, G_ema=3, x=4))
    )
    assert "'ema' is of type dict" in refusal(tmp_path, dump(dict(ema={})))
    top = Persistent("VPPrecond", {})
    assert "VPPrecond is not supported" in refusal(tmp_path, dump(dict(ema=top)))
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    assert "no EDM checkpoint" in refusal(tmp_path, buffer.getvalue())
    for path in (tmp_path / "net.ckpt", tmp_path / "missing.pkl", tmp_path):
        with pytest.raises(UserError):
            read(path)
    (tmp_path / "folder.pkl").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "folder.pkl")


# --- hostile files -------------------------------------------------------------------------------


@pytest.fixture
def sentinel(tmp_path):
    """A path that hostile code would create; the test fails if it is there at the end."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


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
    assert "refused: no EDM checkpoint needs the pickle instruction" in text


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


def test_real_files_stay_far_below_the_limit():
    """The published networks have at most 553 tensors; a tensor costs some 40 instructions."""
    data = edm(SONG)
    count = sum(1 for _ in pickletools.genops(data))
    assert count / len(network(SONG).state_dict()) * 553 < pickles.MAX_INSTRUCTIONS / 10


# --- damaged files -------------------------------------------------------------------------------


def flip(data: bytes, count: int, check) -> int:
    """Reads `count` copies with one to three bytes changed; how many still read."""
    chance, reads = random.Random(0), 0
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(UserError):
            check(bytes(changed))
            reads += 1
    return reads


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
    source = "".join(Path(m.__file__).read_text() for m in (checkpoints, pickles))
    for banned in ("torch.load(", "import pickle\n", "pickle.load", "eval(", "exec(", "getattr("):
        assert banned not in source
