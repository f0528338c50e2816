"""Layers of EDM's networks that do not do exactly what PyTorch's layer of that name does."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bdia_exp.models.layers import GroupNorm, UNetBlock, edm_norm


@pytest.fixture
def norm() -> GroupNorm:
    norm = GroupNorm(4, 16, eps=1e-5)
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


def in_float32(norm: GroupNorm, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize(("pixels", "trains"), [(8, False), (8, True), (32, True)])
def test_a_bfloat16_norm_is_rounded_once(norm, pixels, trains):
    x = torch.randn(2, 16, pixels, pixels).bfloat16().requires_grad_(trains)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, in_float32(norm, x).bfloat16())


def test_a_bfloat16_norm_of_large_planes_is_pytorch_s(norm):
    x = torch.randn(2, 16, 32, 32).bfloat16()
    weight, bias = norm.weight.bfloat16(), norm.bias.bfloat16()
    assert torch.equal(norm(x), F.group_norm(x, 4, weight, bias, 1e-5))
    assert (norm(x) - in_float32(norm, x)).abs().max() < 0.1


def test_a_float32_norm_is_pytorch_s(norm):
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(norm(x), in_float32(norm, x))


def test_the_gradient_of_a_bfloat16_norm(norm):
    """Against float64: the rounding of a gradient to bfloat16, at most 2⁻⁸ of its size."""
    x = torch.randn(2, 16, 8, 8).bfloat16().requires_grad_()
    upstream = torch.randn(2, 16, 8, 8).bfloat16()
    norm(x).backward(upstream)
    exact = x.detach().double().requires_grad_()
    w, b = norm.weight.detach().double(), norm.bias.detach().double()
    F.group_norm(exact, 4, w, b, 1e-5).backward(upstream.double())
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (16, 4), (128, 32), (256, 32)])
def test_edm_s_groups_have_at_least_four_channels(channels, groups):
    assert edm_norm(channels, 1e-5).num_groups == groups


@pytest.fixture
def block() -> UNetBlock:
    torch.manual_seed(0)
    how = {"dropout": 0.0, "skip_scale": 1.0, "eps": 1e-5, "resample_proj": False, "adaptive": True}
    block = UNetBlock(64, 64, 16, heads=2, **how)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return block.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("pixels", [8, 16])
def test_attention_is_edm_s_formula(block, pixels):
    """softmax(qᵀk/√d) over the pixels of each head; the channels of q, k and v are interleaved."""
    x = torch.randn(3, 64, pixels, pixels).to(memory_format=torch.channels_last)
    q, k, v = block.qkv(x).double().reshape(3 * 2, 32, 3, pixels**2).unbind(2)
    weights = torch.einsum("ncq,nck->nqk", q, k / 32**0.5).softmax(2)
    expected = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
    assert (block._attend(x) - expected).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")  # why a kernel is refused
def test_attention_over_many_pixels_has_a_fused_kernel(block):
    few, many = (torch.randn(3, 64, n, n).to(memory_format=torch.channels_last) for n in (8, 16))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert block._attend(many).is_contiguous(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError):
            block._attend(few)  # its bits are those of earlier results
