"""Seeds: image k's draws depend on seed k alone, in EDM's order."""

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.seeds import Generators, parse


@pytest.mark.parametrize(
    ("spec", "seeds"),
    [("7", [7]), (7, [7]), ("0-3,9", [0, 1, 2, 3, 9]), ("5-5", [5]), (" 1 , 3-4 ", [1, 3, 4])],
)
def test_parse(spec, seeds):
    assert parse(spec) == seeds


LARGE = ["4294967296", "0,4294967296", "0-10000000000000", "9" * 5000, f"0-{'9' * 5000}"]


@pytest.mark.parametrize(
    "spec", ["", "a", "3-1", "1,,2", "-4", "1.5", "0-3,2", "2,0-3", "0--3", "²", *LARGE]
)
def test_parse_refuses(spec):
    with pytest.raises(UserError, match="seeds") as error:
        parse(spec)
    assert len(str(error.value)) < 200


def test_many_seeds_need_no_memory():
    seeds = parse("7,100-4294967295,50-60,0-3")
    assert len(seeds) == 1 + (1 << 32) - 100 + 11 + 4
    assert (seeds[0], seeds[1], seeds[-1], seeds[-5]) == (7, 100, 3, 60)
    assert seeds[len(seeds) - 6 :] == [59, 60, 0, 1, 2, 3]
    assert [*parse("3,0-2,9,10")] == [3, 0, 1, 2, 9, 10]
    with pytest.raises(IndexError):
        parse("0-3")[4]


def test_draws_are_those_of_one_generator_a_seed():
    many = Generators([3, 70000, 2**32 + 5])
    noise, labels, more = many.randn((1, 4, 4)), many.randint(10), many.randn((2,))
    for row, seed in enumerate([3, 70000, 5]):  # seeds are taken modulo 2³², as EDM does
        rng = torch.Generator().manual_seed(seed)
        assert torch.equal(noise[row], torch.randn(1, 4, 4, generator=rng))
        assert labels[row] == torch.randint(10, (), generator=rng)
        assert torch.equal(more[row], torch.randn(2, generator=rng))


def test_draws_do_not_depend_on_the_batch():
    whole = Generators(range(6)).randn((3, 2, 2))
    parts = [Generators([k]).randn((3, 2, 2)) for k in range(6)]
    assert torch.equal(whole, torch.cat(parts))


def test_more_noise_is_of_the_dtype_that_is_asked_for_and_of_the_seed():
    z = torch.zeros(3, 2, 2, dtype=torch.float64)
    whole = Generators(range(3)).randn_like(z)
    assert whole.dtype == torch.float64
    for k in range(3):
        rng = torch.Generator().manual_seed(k)
        assert torch.equal(whole[k], torch.randn(2, 2, generator=rng, dtype=torch.float64))
