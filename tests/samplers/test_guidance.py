"""Classifier-free guidance: one call, two rows an image."""

import pytest
import torch

from bdia_exp.samplers.guidance import guided

pytestmark = pytest.mark.quick

X = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
EMPTY, FULL = torch.zeros(3, 1, 4), torch.arange(3.0).reshape(3, 1, 1).expand(3, 1, 4) + 1


class Network:
    """Remembers how many rows it was given."""

    def __init__(self):
        self.rows: list[int] = []

    def __call__(self, x, c):
        self.rows.append(len(x))
        return x.sin() + c.mean(1, keepdim=True) * x


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 9.0])
def test_it_goes_from_the_empty_answer_along_the_difference(scale):
    network = Network()
    found = guided(network, X, scale, torch.cat([EMPTY, FULL], 1))
    free, bound = X.sin(), X.sin() + FULL[:, 0, :1] * X
    torch.testing.assert_close(found, free + scale * (bound - free))
    assert network.rows == [6], "one call of two rows an image"


def test_without_an_empty_condition_the_network_is_asked_once():
    network = Network()
    found = guided(network, X, 7.0, FULL)
    torch.testing.assert_close(found, X.sin() + FULL[:, 0, :1] * X)
    assert network.rows == [3]


def test_every_condition_goes_with_its_row():
    seen = []

    def network(x, *conditions):
        seen.extend(conditions)
        return x

    guided(network, X, 2.0, torch.cat([EMPTY, FULL], 1), FULL.expand(3, 2, 4))
    assert seen[0][:, 0].tolist() == [0, 1, 0, 2, 0, 3]
    assert seen[1][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
