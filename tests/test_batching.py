"""Rows of a network's output do not depend on the batch they came in."""

import pytest
import torch

from bdia_exp.batching import MOST, ROWS, in_full_rows
from bdia_exp.models.edm import EDM, EDMPrecond
from bdia_exp.samplers.schedules import edm, linear_vp


def test_a_batch_is_cut_and_padded():
    seen = []

    def double(x, y, z):
        seen.append((x.shape[0], y.shape[0], z))
        return 2 * x + y

    x, one_row = torch.randn(MOST + 3, 2), torch.randn(1, 2)
    assert torch.equal(in_full_rows(double, x, one_row, None), 2 * x + one_row)
    assert seen == [(MOST, 1, None), (ROWS, 1, None)]
    seen.clear()
    assert torch.equal(in_full_rows(double, x, one_row, None, most=ROWS), 2 * x + one_row)
    assert seen == [(ROWS, 1, None)] * ((MOST + ROWS) // ROWS)
    seen.clear()
    assert torch.equal(in_full_rows(double, x, one_row, None, rows=70), 2 * x + one_row)
    assert seen == [(70, 1, None)]
    seen.clear()
    in_full_rows(double, x.to("meta"), one_row.to("meta"), None)
    assert seen == [(MOST + ROWS, 1, None)]  # a GPU has them all at once


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_size_does_not_change_a_bit(layout, threads):
    torch.manual_seed(0)
    net = EDMPrecond(
        16,
        1,
        10,
        model_type="SongUNet",
        model_channels=16,
        channel_mult=[1, 3],
        num_blocks=1,
        attn_resolutions=[8],
    ).eval()
    for parameter in net.parameters():  # EDM starts its last layers at zero: nothing to see then
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model = EDM(net.to(memory_format=layout), linear_vp(), {})
    z, labels = torch.randn(64, 1, 16, 16).double(), torch.arange(64) % 10
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            whole = model.denoiser(labels)(z, edm(0.7)).eps
            for size, rows in (1, 4), (7, 64), (16, 64), (50, 64):
                parts = [
                    model.denoiser(labels[i : i + size])(z[i : i + size], edm(0.7)).eps
                    for i in range(0, rows, size)
                ]
                assert torch.equal(torch.cat(parts)[:rows], whole[:rows]), size
    finally:
        torch.set_num_threads(before)
