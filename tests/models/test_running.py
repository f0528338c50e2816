"""How a network is run: what changes nothing, what is padded, what is compiled, what is refused."""

import platform
import resource

import pytest
import torch
from torch import nn

from bdia_exp import batching
from bdia_exp.cli.configs import settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.identity import automatic, identity_of
from bdia_exp.models import running
from bdia_exp.models.edm import load
from bdia_exp.models.graphs import Graphed
from bdia_exp.models.running import Running, number

LAST = torch.channels_last
BUNDLED = "bundled:fashion_mini.safetensors"


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.SiLU())


class Shapes:
    """A function that keeps the number of rows of each call."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, scale, label):
        self.rows.append(len(x))
        return x * scale if label is None else x * scale + label


@pytest.mark.quick
@pytest.mark.parametrize(
    ("compiled", "full", "shapes"),
    [
        (False, True, [12, 4, 12, 20]),
        (True, True, [4] * 12),
        (False, False, [10, 3, 10, 17]),
        (True, False, [10, 10, 10, 17]),
    ],
)
def test_a_smaller_last_batch_makes_no_new_shape(compiled, full, shapes, monkeypatch):
    seen = Shapes()
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    monkeypatch.setattr(batching, "ROWS", 4)
    call = Running(compile="default" if compiled else "off").caller(seen, full=full)
    for count in (10, 3, 10, 17):
        x, label = torch.randn(count, 2), torch.arange(count)[:, None]
        assert torch.equal(call(x, torch.tensor(2.0), label), 2 * x + label)
    assert seen.rows == shapes
    x = torch.randn(2, 2)
    assert torch.equal(call(x, torch.tensor(2.0), None), 2 * x)


def test_large_networks_get_few_rows_at_a_time():
    net, seen = nn.Linear(4000, 2600), []  # 10.4 million parameters
    net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    with torch.inference_mode():
        Running().caller(net)(torch.randn(40, 4000))
    assert seen == [16, 16, 16]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_not_asked_for_again():
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    Running().ready(network())
    for _ in range(3):
        torch.ones(4 << 20)
    before = faults()
    for _ in range(10):
        torch.ones(4 << 20)  # 16 MB: 4,096 pages
    assert faults() - before < 4096


def test_a_compiled_network_agrees_and_compiles_once():
    net = Running().ready(network())
    call = Running(compile="default").caller(net)
    x = torch.randn(18, 2, 6, 6)
    first = call(x)
    torch.testing.assert_close(first, net(x), rtol=0, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"), torch.inference_mode():
        parts = [call(x[:3]), call(x[3:]), call((2 * x / 2).contiguous(memory_format=LAST))]
    assert torch.equal(torch.cat(parts), torch.cat([first, first]))


def test_without_a_compiler_one_sentence_says_what_to_do(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    call = Running(compile="default").caller(nn.SiLU())
    with (
        config.patch(force_disable_caches=True),
        pytest.raises(UserError, match=r"compile=default: .*C\+\+ compiler"),
    ):
        call(torch.randn(3, 5))


@pytest.mark.parametrize(
    ("key", "value"), [("dtype", "int8"), ("compile", "fast"), ("graphs", "on")]
)
def test_unknown_values_are_refused(key, value):
    with pytest.raises(UserError, match=f"{key}='?{value}"):
        settings("sample", [f"{key}={value}"])


@pytest.mark.quick
def test_what_changes_bits_is_in_the_identity_unless_it_is_usual():
    def asked(*words):
        return settings("sample", ["sampler=bdia_ddim", "sampler.gamma=auto", *words])

    def identity(*words):
        return identity_of(asked(*words), {}, seeds="0-63")

    usual = identity()
    assert not {"dtype", "compile", "graphs", "tf32"} & usual.keys()
    assert identity("compile=off", "graphs=auto", "tf32=false", "dtype=auto") == usual
    assert identity("compile=default") == usual | {"compile": "default"}
    assert identity("tf32=true") == usual | {"tf32": True}
    names = {automatic(asked(*words)).name for words in ([], ["graphs=auto"], ["compile=off"])}
    assert len(names) == 1
    assert automatic(asked("compile=default")).name not in names


def test_graphs_and_meta_devices_change_nothing_on_a_cpu():
    plain, graphed = load(BUNDLED), load(BUNDLED, graphs="auto")
    z, labels = torch.randn(2, *plain.shape).double(), torch.tensor([1, 2])
    level = settings("sample", []).grid.make(4, plain.schedule)[1]
    with torch.inference_mode():
        wanted = plain.denoiser(labels)(z, level).eps
        assert torch.equal(graphed.denoiser(labels)(z, level).eps, wanted)
    assert not Running("meta", compile="default").compiles


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_gives_the_same_bits():
    net = Running("cuda").ready(network())

    def scaled(x, scale, label):
        return net(x) * scale if label is None else net(x) * scale + label

    graphed = Graphed(scaled)
    for count, scale in ((4, 1.0), (4, 2.0), (3, 0.5), (4, 3.0)):
        x = torch.randn(count, 2, 6, 6, device="cuda")
        factor, label = number(scale, x.device), torch.randn(count, 1, 1, 1, device="cuda")
        for own in (None, label):
            with torch.inference_mode():
                assert torch.equal(graphed(x, factor, own), scaled(x, factor, own))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("how", [{}, {"compile": "default"}, {"dtype": "bfloat16"}])
def test_a_model_with_cuda_graphs_agrees(how):
    plain, graphed = (
        load(BUNDLED, device="cuda", graphs=graphs, **how) for graphs in ("off", "auto")
    )
    labels, grid = torch.arange(20) % 10, settings("sample", []).grid.make(4, plain.schedule)
    z = torch.randn(20, *plain.shape, device="cuda").double()
    with torch.inference_mode():
        for rows in (slice(0, 20), slice(3, 10)):
            for level in grid[:-1]:
                eps = [m.denoiser(labels[rows])(z[rows], level).eps for m in (plain, graphed)]
                torch.testing.assert_close(*eps, rtol=0, atol=1e-3)


def test_same_bits_holds_in_its_block_alone():
    for wanted in (True, False):
        with running.same_bits(wanted):
            assert torch.are_deterministic_algorithms_enabled() == wanted
        assert not torch.are_deterministic_algorithms_enabled()
