"""A network's description is checked field by field before anything is built."""

import json
import math
import time

import pytest
from safetensors.torch import save_file

from bdia_exp.errors import UserError
from bdia_exp.models import ddpm, descriptions, edm
from bdia_exp.models.ddpm import DDPMUNet
from bdia_exp.models.edm import EDMPrecond
from tests.models.tiny_ddpm import TINY as DDPM
from tests.sources import pickled
from tests.sources.pickled import SONG, network, write

WRONG = [[], {}, None, "", "x", 0, -1, 1e308, math.nan, 10**9, True, [[]]]
MORE = [*WRONG, math.inf, 10**6, [0], 0.5, [1] * 60, [10**9], ["a"], [math.nan, 1.0], {"a": [1]}]


def built(load, *args, **kwargs):
    """The network, or None if it is refused: in one sentence, within a second."""
    begun = time.process_time()
    try:
        return load(*args, **kwargs)
    except UserError as error:
        said = str(error)
    finally:
        assert time.process_time() - begun < 1
    assert "\n" not in said
    return None


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """The first network on the device "meta" makes PyTorch import what it needs: seconds."""
    edm.load("x", network=SONG, device="meta")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "net.safetensors"
    save_file({k: v.contiguous() for k, v in network(SONG).state_dict().items()}, path)
    return path


def test_every_field_of_the_json_beside_the_weights(ours):
    loads = []
    for key in (*descriptions.SONG, "other"):
        for value in WRONG if key in ("sigma_max", "channel_mult") else (math.nan, [[]], True):
            ours.with_suffix(".json").write_text(json.dumps({"network": SONG | {key: value}}))
            if built(edm.load, str(ours)):
                loads.append((key, value))
    assert loads == [("use_fp16", True), ("sigma_max", 1e308), ("sigma_max", 10**9)]


@pytest.mark.parametrize("where", ["attribute", "argument"])
def test_every_field_of_a_pickle(tmp_path, where):
    keys = edm.EDMPrecond.__init__.__annotations__ if where == "attribute" else descriptions.SONG
    head = dict(_parameters={}, _buffers={}, _modules={})
    for key in keys:
        for value in WRONG:
            attributes = {key: value} if where == "attribute" else {}
            arguments = SONG if attributes else SONG | {key: value}
            state = head | attributes | {"_init_kwargs": arguments}
            top = pickled.Persistent("EDMPrecond", state)
            path = write(tmp_path, pickled.dump(dict(ema=top)))
            assert built(edm.load, str(path)) is None  # it has no weights


def test_every_field_in_the_configuration():
    for family, tiny, fields in (ddpm, DDPM, descriptions.DDPM), (edm, SONG, descriptions.SONG):
        for key in (*fields, "other"):
            for value in MORE:
                built(family.load, "none", network=tiny | {key: value}, device="meta")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_channels": [128]},
            r"model_channels=\[128\] must be a whole number from 1 to 8,192",
        ),
        ({"model_channels": True}, "model_channels=True must be a whole number"),
        ({"img_channels": 2}, r"img_channels=2 must be 1 \(grey\) or 3 \(colour\)"),
        ({"model_channels": 7}, "an even number of channels, not 7"),
        ({"model_channels": 2}, "2 channels cannot be normalised"),
        ({"channel_mult": []}, r"channel_mult=\[\] must be a list of 1 to 8, each a whole number"),
        ({"channel_mult": [1, 2, 2, 2, 2]}, "a size of 8 cannot be halved 4 times"),
        ({"num_blocks": 10**6}, "num_blocks=1000000 must be a whole number from 1 to 16"),
        ({"sigma_data": 0}, "sigma_data=0 must be a number from 1e-06"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min=2 must be less than sigma_max=1"),
        ({"dropout": math.nan}, "dropout=nan must be a number from 0 to 1"),
        ({"use_fp16": 1}, "use_fp16=1 must be true or false"),
        ({"model_type": "UNet"}, "model_type=UNet must be SongUNet or DhariwalUNet"),
        ({"embedding_type": 3}, "embedding_type=3 must be positional or fourier"),
        ({"encoder_type": "skip"}, "encoder_type=skip must be standard or residual"),
        ({"resample_filter": [1, 2, 1]}, "filter of 3 numbers is not of even length"),
        ({"colour": 1}, "colour is no field"),
        (
            {"model_type": "DhariwalUNet", "model_channels": 224, "attn_resolutions": [8]},
            "split into 3 heads",
        ),
        ({"model_type": "DhariwalUNet", "resample_filter": [1, 1]}, "resample_filter is no field"),
    ],
)
def test_the_fault_is_named(change, said):
    with pytest.raises(UserError, match=f"^x describes no network that we can build: .*{said}"):
        edm.load("x", network=SONG | change, device="meta")


def test_a_missing_field_is_named():
    config = {key: value for key, value in SONG.items() if key != "img_resolution"}
    with pytest.raises(UserError, match="img_resolution is missing"):
        edm.load("x", network=config, device="meta")
    with pytest.raises(UserError, match="ch_mult is missing"):
        ddpm.load("x", network={k: v for k, v in DDPM.items() if k != "ch_mult"}, device="meta")


def test_the_fields_are_the_arguments_of_the_networks():
    def arguments(*functions):
        code = [f.__init__.__code__ for f in functions]
        names = {n for c in code for n in c.co_varnames[1 : c.co_argcount]}
        return names - {"in_channels", "out_channels"}

    song, adm = edm.SongUNet, edm.DhariwalUNet
    assert arguments(EDMPrecond, song) == descriptions.SONG.keys()
    assert arguments(EDMPrecond, adm) == descriptions.EDM.keys()
    code = DDPMUNet.__init__.__code__
    assert set(code.co_varnames[1 : code.co_argcount]) == descriptions.DDPM.keys()


def test_the_largest_description_takes_no_memory():
    """Built without weights, then refused by what the file holds."""
    largest = SONG | {"model_channels": 8192, "channel_mult": [64, 64], "channel_mult_emb": 64}
    net = descriptions.build(EDMPrecond, largest, descriptions.SONG, (), "x")
    assert sum(p.numel() for p in net.parameters()) > 10**13
    assert all(p.is_meta for p in net.parameters())
