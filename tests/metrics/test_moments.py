"""Streaming moments: one pass, any batches, any number of processes; and their files."""

import gc
import os
import socket
import weakref
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from bdia_exp import dist
from bdia_exp.errors import UserError
from bdia_exp.metrics import sums
from bdia_exp.metrics.frechet import BLOCKS, sums_size
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.sums import FeatureMoments
from bdia_exp.store import archives

FEATURES = torch.randn(101, 7, generator=torch.Generator().manual_seed(0)).exp()


def moments(batches) -> Statistics:
    metric = FeatureMoments(7)
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def assert_equal(a: Statistics, b: Statistics, tolerance: float) -> None:
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.cov, b.cov, rtol=0, atol=tolerance)
    assert a.count == b.count


def test_streaming_equals_all_at_once():
    stats = moments(FEATURES.split(8))
    all_at_once = FEATURES.double().numpy()
    expected = Statistics(all_at_once.mean(0), np.cov(all_at_once.T), 101)
    assert_equal(stats, expected, 1e-12)
    assert stats.mean.dtype == stats.cov.dtype == np.float64


@pytest.mark.parametrize("size", [1, 3, 50, 101])
def test_splitting_and_order_do_not_matter(size):
    batches = FEATURES.flip(0).split(size)
    assert_equal(moments(batches[::-1]), moments([FEATURES]), 1e-12)
    assert_equal(moments([*batches, FEATURES[:0]]), moments([FEATURES]), 1e-12)


def test_memory_does_not_grow():
    metric = FeatureMoments(7)
    sizes = set()
    for batch in FEATURES.split(10):
        metric.update(batch)
        sizes.add(sum(state.numel() for state in metric.metric_state.values()))
    assert sizes == {1 + 7 + 49}


def test_the_plan_knows_the_memory_of_the_sums():
    metric = FeatureMoments(100, BLOCKS)
    kept = {id(t): t.nbytes for t in (metric.outer, metric._defaults["outer"])}
    assert sum(kept.values()) == sums_size(100)


def test_an_unused_metric_with_large_sums_is_freed_for_the_next(monkeypatch):
    """A torchmetrics metric refers to itself: without a collection it would stay."""
    monkeypatch.setattr(sums, "LARGE", 7**2)
    gc.disable()
    try:
        metric = FeatureMoments(7)
        unused = weakref.ref(metric)
        del metric
        assert unused() is not None
        FeatureMoments(7)
        assert unused() is None
    finally:
        gc.enable()


def test_plain_sums_do_for_a_mean_of_a_thousand_standard_deviations():
    """Why there is no shift: float64 has digits enough for any network's features."""
    features = FEATURES.double().repeat(50, 1)
    shifted = moments((features + 1000).split(64))
    np.testing.assert_allclose(shifted.cov, moments([features]).cov, rtol=0, atol=1e-9)


def test_reset_starts_again():
    metric = FeatureMoments(7)
    metric.update(FEATURES + 5)
    metric.reset()
    metric.update(FEATURES)
    assert_equal(metric.compute(), moments([FEATURES]), 0)


def test_blocks_are_left_out_by_the_keys_of_the_images():
    metric = FeatureMoments(7, blocks=3)
    keys = list(range(1000, 1101))
    for rows in torch.arange(101).split(8):
        metric.update(FEATURES[rows], [keys[row] for row in rows])
    assert_equal(metric.compute(), moments([FEATURES]), 1e-12)
    for block, found in enumerate(metric.without_blocks()):
        rest = FEATURES[[row for row, key in enumerate(keys) if key % 3 != block]]
        assert_equal(found, moments([rest]), 1e-12)


def test_one_dimension_keeps_its_shape():
    metric = FeatureMoments(1)
    metric.update(FEATURES[:, :1])
    assert metric.compute().mean.shape == (1,)
    assert metric.compute().cov.shape == (1, 1)


def _one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.start()
    share = FEATURES[:30] if rank == 0 else FEATURES[30:]  # unequal on purpose
    moments(share.split(16)).save(f"{folder}/{rank}.npz")
    dist.stop()


def test_two_processes_give_the_statistics_of_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_one_of_two, (port, str(tmp_path)), nprocs=2)
    ranks = [Statistics.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert_equal(ranks[0], ranks[1], 0)
    assert_equal(ranks[0], moments([FEATURES]), 1e-12)


def test_too_few_images():
    with pytest.raises(UserError, match="at least 2 images; there are 1"):
        moments([FEATURES[:1]])


def test_features_that_are_not_finite():
    with pytest.raises(UserError, match="NaN or infinity"):
        moments([FEATURES, torch.full((1, 7), torch.nan)])


def test_save_and_load(tmp_path):
    stats = replace(moments([FEATURES]), meta={"features": "toy", "sha256": "ab"})
    stats.save(tmp_path / "stats.npz")
    again = Statistics.load(tmp_path / "stats.npz")
    assert_equal(again, stats, 0)
    assert again.meta == stats.meta
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_files_of_other_programs(tmp_path):
    np.savez(tmp_path / "edm.npz", mu=np.ones(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    stats = Statistics.load(tmp_path / "edm.npz")
    assert stats.count is None
    assert stats.meta is None
    assert stats.cov.dtype == np.float64


WELL = {"mu": np.ones(2), "sigma": np.eye(2)}


def test_what_is_no_fault(tmp_path):
    """Rounding of float32, a singular covariance, an entry that is not read, `Infinity` in meta."""
    cov = np.cov(np.random.default_rng(0).normal(size=(64, 40)) * np.logspace(-6, 3, 40))
    for sigma in (cov.astype(np.float32), np.zeros((64, 64)), np.ones((64, 64))):
        more = {"count": 99.0, "meta": '{"note": Infinity}', "files": np.array([{}])}
        np.savez(tmp_path / "x.npz", mu=np.ones(64), sigma=sigma, **more)
        assert Statistics.load(tmp_path / "x.npz").count == 99


@pytest.mark.parametrize("name", ["mu", "sigma", "features"])
@pytest.mark.parametrize("claimed", [10**12, 2**62, -4])
def test_headers_that_lie_reserve_no_memory(tmp_path, name, claimed):
    np.savez(tmp_path / "x.npz", **WELL, features=np.ones((9, 2), np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    old = {"mu": "(2,)", "sigma": "(2, 2)", "features": "(9, 2)"}[name]
    new = {"mu": "(%d,)", "sigma": "(2, %d)", "features": "(%d, 2)"}[name] % claimed
    longer = " " * (len(new) - len(old))
    data = members[f"{name}.npy"]
    members[f"{name}.npy"] = data.replace(f"{old}, }}{longer}".encode(), f"{new}, }}".encode())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for member in members.items():
            archive.writestr(*member)
    with pytest.raises(UserError, match=r"x.npz cannot be read as .* its header claims \["):
        Statistics.load(tmp_path / "x.npz")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 10**6)
    np.savez_compressed(tmp_path / "x.npz", **WELL, features=np.zeros((10**6, 2), np.float32))
    with pytest.raises(UserError, match=r"it unpacks to 0\.0 GiB: save it unpacked"):
        Statistics.load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"mu": np.ones(3)}, "lacks sigma"),
        ({"images": np.ones(3)}, "lacks mu and sigma"),
        ({"mu": np.ones(3), "sigma": np.ones((3, 2))}, "not \\[D\\], \\[D, D\\]"),
        ({"mu": np.ones(4), "sigma": np.eye(3)}, "not \\[D\\], \\[D, D\\]"),
        ({"mu": np.ones((1, 3)), "sigma": np.eye(3)}, "not \\[D\\], \\[D, D\\]"),
        ({"mu": np.float64(1), "sigma": np.float64(1)}, "not \\[D\\], \\[D, D\\]"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN or infinity"),
        ({"mu": np.ones(3), "sigma": np.full((3, 3), np.inf)}, "NaN or infinity"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "not real numbers"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "cannot be read"),
        ({"mu": np.ones(1), "sigma": np.eye(1), "meta": np.array("{")}, "meta"),
        ({"mu": np.ones(1), "sigma": np.eye(1), "meta": np.array("5")}, "meta that is not an obj"),
        ({"mu": np.ones(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "must be symmetric"),
        ({"mu": np.ones(2), "sigma": -np.eye(2)}, "no covariance"),
        ({"mu": np.ones(2), "sigma": np.array([[1.0, 2], [2, 1]])}, "negative eigenvalues"),
        ({"mu": np.ones(64), "sigma": np.diag([-0.01] + 63 * [1.0])}, "negative eigenvalues"),
        ({"mu": np.ones(0), "sigma": np.ones((0, 0))}, "not \\[D\\], \\[D, D\\]"),
        ({"mu": np.full(2, 1e200), "sigma": np.eye(2)}, "numbers above 1e150"),
        ({"mu": np.ones(2), "sigma": np.eye(2) * 1e300}, "numbers above 1e150"),
        (WELL | {"count": np.inf}, "count that is not a whole number"),
        (WELL | {"count": np.nan}, "count that is not a whole number"),
        (WELL | {"count": -5}, "count that is not a whole number"),
        (WELL | {"count": 0}, "count that is not a whole number"),
        (WELL | {"count": 9.5}, "count that is not a whole number"),
        (WELL | {"count": "9"}, "count that is not a whole number"),
        (WELL | {"count": np.array([9, 9])}, "count that is an array"),
        (WELL | {"count": np.array([{}])}, "count that is an array|Python objects"),
        (WELL | {"meta": "[" * 100_000}, "meta that cannot be read"),
        (WELL | {"meta": "[1]"}, "meta that is not an object"),
        (WELL | {"meta": np.array(["{}"])}, "meta that is an array"),
        (WELL | {"features": np.ones((9, 3), np.float32)}, "not float32 \\[N, 2\\]"),
        (WELL | {"features": np.ones((9, 2))}, "not finite float32"),
        (WELL | {"features": np.full((9, 2), np.nan, np.float32)}, "not finite float32"),
        (WELL | {"features": np.ones((9, 2), np.float32), "count": 8}, "its count is 8"),
    ],
)
def test_files_that_are_wrong(tmp_path, arrays, sentence):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        Statistics.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x80\x04N."])
def test_files_that_are_not_npz(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as"):
        Statistics.load(tmp_path / "bad.npz")


def test_an_array_file_is_not_npz(tmp_path):
    np.save(tmp_path / "bad.npy", np.ones(3))
    with pytest.raises(UserError, match="is not an"):
        Statistics.load(tmp_path / "bad.npy")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Statistics.load(tmp_path / "none.npz")
