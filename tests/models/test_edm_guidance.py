"""Guidance of EDM networks that were trained with and without their classes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bdia_exp.errors import UserError
from bdia_exp.models import Classes, of_classes, require_guidance
from bdia_exp.models.edm import EDMPrecond, load
from bdia_exp.models.langevin import cld
from bdia_exp.samplers.schedules import edm
from tests.sources.pickled import SONG

NETWORK = dict(SONG, model_channels=16, channel_mult=[1], attn_resolutions=[8], augment_dim=0)
LABELS = torch.tensor([2, 0])
GUIDES = {"label_dropout": 0.1}


def saved(folder: Path, **more) -> Path:
    """A network of random weights whose answer depends on its class."""
    torch.manual_seed(5)
    net = EDMPrecond(**NETWORK | more)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(net.state_dict(), folder / "net.safetensors")
    (folder / "net.json").write_text(json.dumps({"network": NETWORK | more}))
    return folder / "net.safetensors"


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_it_lies_on_the_line_through_the_answers_with_and_without_the_class(
    tmp_path, guidance, model_type
):
    model = load(str(saved(tmp_path, model_type=model_type, **GUIDES)))
    assert model.takes_guidance
    z = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        found = model.denoiser(Classes(LABELS, guidance))(z, edm(1.5))
        free = model.net(z, 1.5, None).double()
        bound = model.net(z, 1.5, torch.eye(3)[LABELS]).double()
    assert (bound - free).abs().max() > 0.01
    torch.testing.assert_close(found.x, free + guidance * (bound - free), rtol=1e-5, atol=1e-5)


def test_one_evaluation_is_one_call_of_two_rows_an_image(tmp_path):
    model = load(str(saved(tmp_path, **GUIDES)))
    rows = []
    model._call = lambda x, *more: rows.append(len(x)) or x
    z = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    for guidance in (None, 1.0, 2.0):
        model.denoiser(of_classes(LABELS[:1].expand(5), guidance))(z, edm(1.0))
    assert rows == [5, 5, 10]


def test_scale_1_is_the_class_and_0_is_no_class_bit_for_bit(tmp_path):
    model = load(str(saved(tmp_path, **GUIDES)))
    z = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        one, bound = (model.denoiser(c)(z, edm(0.7)).eps for c in (Classes(LABELS, 1.0), LABELS))
        nothing, free = (model.denoiser(c)(z, edm(0.7)).eps for c in (Classes(LABELS, 0.0), None))
    assert torch.equal(one, bound)
    assert torch.equal(nothing, free)


def test_an_image_does_not_depend_on_its_batch(tmp_path):
    model = load(str(saved(tmp_path, **GUIDES)))
    z, labels = torch.randn(40, 1, 8, 8, dtype=torch.float64), torch.arange(40) % 3
    with torch.inference_mode():
        whole = model.denoiser(Classes(labels, 2.0))(z, edm(0.7)).eps
        part = model.denoiser(Classes(labels[37:], 2.0))(z[37:], edm(0.7)).eps
    assert torch.equal(whole[37:], part)


def test_models_that_take_none_say_so(tmp_path):
    trained = load(str(saved(tmp_path, **GUIDES)))
    other = load(str(saved(tmp_path)))
    nothing = load(str(saved(tmp_path, label_dim=0, **GUIDES)))
    require_guidance(trained, 2.0)
    for model in (other, nothing, cld(trained)):
        require_guidance(model, None)
        require_guidance(model, 1.0)
        with pytest.raises(UserError, match="guidance=2: guidance needs a model of texts, or one"):
            require_guidance(model, 2.0)
    with pytest.raises(UserError, match="guidance=2: guidance needs a model of texts, or one"):
        other.denoiser(Classes(LABELS, 2.0))
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be 0 or more"):
            require_guidance(trained, wrong)
