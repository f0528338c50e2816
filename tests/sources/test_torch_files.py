"""Files of `torch.save`: every published layout, and files that are not what they should be."""

import io
import os
import pickle
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.sources import torch_files
from bdia_exp.sources.checkpoints import read
from tests.models.tiny_ddpm import TINY, network
from tests.sources.pickled import Call, flip


def other(state: dict) -> dict:
    """Weights that are not to be taken."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def in_parallel(state: dict) -> dict:
    return {f"module.{name}": value for name, value in state.items()}


def optimiser(state: dict) -> dict:
    moments = {i: {"step": 3, "exp_avg": value} for i, value in enumerate(other(state).values())}
    return {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}


LAYOUTS = {
    "flat": lambda s: s,
    "parallel": in_parallel,
    "as parameters": lambda s: {name: torch.nn.Parameter(value) for name, value in s.items()},
    "ddim": lambda s: [in_parallel(other(s)), optimiser(s), 7, 790_000, in_parallel(s)],
    "ddim without averages": lambda s: [in_parallel(s), optimiser(s), 7, 790_000],
    "tuple": lambda s: (other(s), s),
    "ema": lambda s: {"model": other(s), "optimizer": optimiser(s), "step": 3, "ema": s},
    "shadow": lambda s: {"ema": {"mu": 0.999, "shadow": in_parallel(s)}, "state_dict": other(s)},
    "ema_state_dict": lambda s: {"ema_state_dict": s, "state_dict": other(s), "ema": None},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": {"state_dict": s}, "ema": 0.999},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_layout_holds_the_same_weights(tmp_path, layout, zipped):
    state = network(TINY).state_dict()
    for suffix in (".ckpt", ".pt", ".pth", ".bin"):
        path = tmp_path / f"net{suffix}"
        torch.save(LAYOUTS[layout](state), path, _use_new_zipfile_serialization=zipped)
        file = read(path)
        assert file.config == {}
        assert file.path == path
        assert list(file.state) == list(state)
        for name, value in state.items():
            assert torch.equal(file.state[name], value)
            assert type(file.state[name]) is torch.Tensor


def test_other_precisions_and_strides_become_plain(tmp_path):
    state = {
        "a": torch.randn(3, 4).half(),
        "b": torch.randn(4, 3).double().t(),
        "n": torch.ones(1).int(),
    }
    torch.save(state, tmp_path / "a.pt")
    read_back = read(tmp_path / "a.pt").state
    assert {value.dtype for value in read_back.values()} == {torch.float32, torch.int32}
    for name, value in state.items():
        assert read_back[name].is_contiguous()
        assert torch.equal(read_back[name], value.to(read_back[name].dtype))


# --- files that are not what they should be ------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def lightning(monkeypatch):
    """Lightning's class of a callback, for the time of writing a file."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module = types.ModuleType(name)
    module.ModelCheckpoint = kind
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return kind


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lightning_leaves_beside_the_weights(tmp_path, lightning, zipped, monkeypatch):
    """As in Stable Diffusion 1's files: a class as a key, numbers of NumPy's."""
    weights = {"model.diffusion_model.a": torch.ones(2), "model_ema.num_updates": torch.tensor(3)}
    best = {"best_model_score": np.float64(0.25), "monitor": "val/loss", "own": lightning()}
    root = {"epoch": 8, "global_step": 470000, "callbacks": {lightning: best}}
    root |= {"pytorch-lightning_version": "1.4.2", "state_dict": weights, "lr_schedulers": []}
    path = tmp_path / "sd.ckpt"
    torch.save(root, path, _use_new_zipfile_serialization=zipped)
    pickled = path.read_bytes()
    monkeypatch.undo()  # the module is not there when it is read
    assert b"ModelCheckpoint" in pickled
    assert b"multiarray" in pickled
    allowed = set(torch.serialization.get_safe_globals())
    state = read(path).state
    assert list(state) == list(weights)
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_nothing_else_beside_the_weights(tmp_path, lightning):
    lightning.__qualname__ = lightning.__name__ = "EarlyStopping"
    sys.modules[lightning.__module__].EarlyStopping = lightning
    torch.save({"state_dict": {}, "callbacks": {lightning: 1}}, tmp_path / "a.ckpt")
    assert f"refused: it asks for {lightning.__module__}.Early" in refusal(tmp_path / "a.ckpt")
    torch.save({"state_dict": {"a": np.zeros(3)}}, tmp_path / "a.ckpt")
    assert "refused: it asks for numpy" in refusal(tmp_path / "a.ckpt")
    torch.save({"state_dict": {"a": np.float64(1)}}, tmp_path / "a.ckpt")
    assert "no weights in it" in refusal(tmp_path / "a.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".safetensors"])
def test_nothing_is_executed(tmp_path, sentinel, suffix):
    evil = Call(os.system, f"touch {sentinel}")
    path = tmp_path / f"net{suffix}"
    for root in (evil, {"a": torch.zeros(1), "b": evil}, [evil, {"a": torch.zeros(1)}]):
        for zipped in (True, False):
            torch.save(root, path, _use_new_zipfile_serialization=zipped)
            text = refusal(path)
            if suffix not in (".pkl", ".safetensors"):
                assert f"refused: it asks for {os.name}.system" in text
                assert "nothing was executed" in text
        for protocol in (2, 4):
            path.write_bytes(pickle.dumps(root, protocol))
            refusal(path)


def test_the_oldest_format(tmp_path):
    with tarfile.open(tmp_path / "net.pt", "w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"\x80\x02N."))
    assert "a tar archive" in refusal(tmp_path / "net.pt")


def test_torchs_own_unpickler_is_never_used():
    package = Path(torch_files.__file__).parents[1]
    assert not [path for path in package.rglob("*.py") if "torch.load(" in path.read_text()]


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ([1, 2], "no weights in it.*but is list"),
        (7, "but is int"),
        ({}, "but is dict"),
        ([], "but is list"),
        (torch.zeros(3), "but is Tensor"),
        ({"ema": {}}, "a dict of ema"),
        ({"a": torch.tensor(1.0), "b": 3}, "a dict of a, b"),
        ({3: torch.zeros(1)}, "a dict of 3"),
        ({"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": []}, "state, param_groups"),
        (
            {"ema": {"shadow_params": [torch.zeros(1)]}, "model": {"a": torch.zeros(1)}},
            r"averaged weights \(ema\) and raw ones \(model\) that do not match",
        ),
        ({"a": torch.zeros(1).expand(1 << 40)}, "the tensor a reaches outside its 1 numbers"),
        ({"a": torch.zeros(2).to_sparse()}, "the tensor a is not stored number by number"),
        ({"a": torch.zeros(2, device="meta")}, "the tensor a is not stored"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_what_holds_no_weights_is_named(tmp_path, root, said):
    torch.save(root, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match=said):
        read(tmp_path / "net.ckpt")


@pytest.mark.filterwarnings("ignore::UserWarning")  # deprecated, and still to be met
def test_quantised_tensors_are_refused(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"a": quantised}, tmp_path / "net.ckpt")
    assert "the tensor a is not stored" in refusal(tmp_path / "net.ckpt")


def test_a_dict_that_holds_itself(tmp_path):
    loop: dict = {}
    loop["ema"] = loop
    torch.save(loop, tmp_path / "net.ckpt")
    assert "a dict of ema" in refusal(tmp_path / "net.ckpt")


def test_other_files_and_folders(tmp_path):
    path = tmp_path / "net.ckpt"
    for data, said in [
        (b"", "damaged or incomplete"),
        (b" \n<!DOCTYPE html><html>", "a web page"),
        (b"hello", "damaged or incomplete"),
        (b"PK\x03\x04" + bytes(40), "damaged or incomplete"),
    ]:
        path.write_bytes(data)
        assert said in refusal(path)
    assert "cannot be read" in refusal(tmp_path / "missing.pt")
    assert "a folder must hold diffusion_pytorch_model.safetensors" in refusal(tmp_path)
    (tmp_path / "net.onnx").touch()
    assert ".ckpt, .pt, .pth, .bin" in refusal(tmp_path / "net.onnx")


SMALL = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_flipped_files_read_or_are_refused(tmp_path, zipped):
    path = tmp_path / "net.ckpt"
    torch.save([SMALL, optimiser(SMALL), 1, SMALL], path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        read(path)

    for cut in {*range(1, len(data), 37), len(data) - 1}:
        path.write_bytes(data[:cut])
        refusal(path)
    assert 0 < flip(data, 400, check) < 400
