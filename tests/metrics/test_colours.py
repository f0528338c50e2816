"""The colours of coloured garments, and the classifier that looks at their largest channel."""

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.metrics.colours import TINTS, colour_of, grey_of, tinted
from bdia_exp.metrics.features import bundled, garments

SEEDED = torch.Generator().manual_seed(0)
GREY = torch.randint(0, 256, (len(TINTS), 1, 32, 32), dtype=torch.uint8, generator=SEEDED)
EACH = torch.arange(len(TINTS))


def test_a_tint_can_be_undone_for_every_grey_value():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(len(TINTS), -1, -1, -1)
    images = tinted(values, EACH)
    assert images.shape == (len(TINTS), 3, 16, 16)
    assert torch.equal(grey_of(images), values)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_the_colour_is_seen_in_bright_and_dark_images_with_noise(share):
    images = tinted((GREY * share).to(torch.uint8), EACH).int()
    noise = torch.randint(-2, 3, images.shape, generator=SEEDED)
    assert torch.equal(colour_of((images + noise).clamp(0, 255).to(torch.uint8)), EACH)


def test_garments_see_what_the_classifier_sees_in_grey():
    ours, grey = garments()(tinted(GREY, EACH)), bundled()(GREY)
    assert torch.equal(ours.features, grey.features)
    assert torch.equal(ours.logits, grey.logits)
    assert garments().sha256 == bundled().sha256
    with pytest.raises(UserError, match="takes uint8 images"):
        garments()(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
