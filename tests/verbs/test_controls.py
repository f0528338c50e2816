"""A ControlNet's pictures: edges that are computed, and a picture for each image."""

import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp.errors import UserError
from bdia_exp.jobs.controls import Control
from bdia_exp.models.edges import canny
from bdia_exp.store.image_sets import ImageSet

from .test_text import do

pytest.importorskip("cv2")
TINY = ("model=tiny-sd", "condition=tiny-controlnet", "device=cpu", "nfe=3", "prompt=a cat")


def squares(*sides: int) -> torch.Tensor:
    images = torch.zeros(len(sides), 3, 64, 64, dtype=torch.uint8)
    for image, side in zip(images, sides, strict=True):
        image[:, 32 - side : 32 + side, 32 - side : 32 + side] = 200
    return images


@pytest.mark.quick
def test_edges_are_where_the_brightness_changes():
    """White outlines of a square; the same of a grey image; nothing of an even one."""
    (found,) = canny(squares(16))
    assert found.shape == (3, 64, 64)
    assert {*found.unique().tolist()} == {0, 255}
    rows, columns = torch.nonzero(found[0], as_tuple=True)
    distance = torch.maximum((rows - 31.5).abs(), (columns - 31.5).abs())
    assert ((distance >= 15) & (distance <= 17)).all()
    assert len(rows) > 4 * 28
    assert torch.equal(canny(squares(16)[:, :1])[0], found)
    assert not canny(torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)).any()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, image in enumerate(squares(8, 16, 24)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{k}.png")
    return folder


def test_image_k_follows_picture_k(pictures, tmp_path):
    own = (f"control=auto:canny:{pictures}", "batch=2")
    record = do("sample", *TINY, *own, "images=4", f"out={tmp_path / 'all'}")
    every = ImageSet(tmp_path / "all").read(range(4))
    assert record["control_pixels"] == Control.of(own[0][8:], (3, 64, 64)).sha256
    for seed in (1, 3):  # the fourth image follows the first picture again
        one = f"control=auto:canny:{pictures / f'{seed % 3}.png'}"
        do("sample", *TINY, one, f"seeds={seed}", f"out={tmp_path / str(seed)}")
        assert torch.equal(ImageSet(tmp_path / str(seed)).read([0])[0], every[seed])


def test_edges_are_those_of_a_picture_that_has_them(pictures, tmp_path):
    """Computed here or drawn in a file: the same image, but two experiments."""
    drawn = tmp_path / "edges.png"
    edges = canny(ImageSet(pictures / "1.png").read([0]))[0]
    Image.fromarray(edges.permute(1, 2, 0).numpy()).save(drawn)
    for name, source in {"here": f"auto:canny:{pictures / '1.png'}", "file": str(drawn)}.items():
        do("sample", *TINY, "images=1", f"control={source}", f"out={tmp_path / name}")
    here, file = (ImageSet(tmp_path / name).read([0]) for name in ("here", "file"))
    assert np.array_equal(here, file)
    plain = f"control={pictures / '1.png'}"
    with pytest.raises(UserError, match=r"holds another experiment \(control_kind was canny"):
        do("sample", *TINY, "images=1", plain, f"out={tmp_path / 'here'}")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("auto:canny", "name the picture, control=auto:canny:photo.png"),
        ("auto:depth:photo.png", "nothing called 'depth' is known; known: canny"),
        ("auto:cany:photo.png", "nothing called 'cany' is known; did you mean 'canny'"),
        ("auto:canny:not.png", "not.png does not exist"),
    ],
)
def test_a_control_that_cannot_be_computed(control, message, tmp_path):
    with pytest.raises(UserError, match=message):
        do("sample", *TINY, "images=1", f"control={control}", f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_chosen_prompts_do_not_fit_several_pictures(pictures, tmp_path):
    (captions := tmp_path / "captions.csv").write_text("prompt\na\nb\nc\n")
    words = [*TINY[:-1], f"prompts={captions}", f"control=auto:canny:{pictures}", "images=3"]
    with pytest.raises(UserError, match=r"has 3 pictures, .* add prompts_seed=null"):
        do("sample", *words, f"out={tmp_path / 'run'}")
    do("sample", *words, "prompts_seed=null", f"out={tmp_path / 'run'}")
