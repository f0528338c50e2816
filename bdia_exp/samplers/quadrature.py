"""Gauss-Legendre quadrature, and integrals over the time of a diffusion.

A diffusion's matrices change fast near t = 0, so its integrals are taken in another variable.
"""

import math
from functools import cache

import torch
from torch import Tensor

SCALE, PANEL = 1e-4, 0.25
"""Integrals are taken in w, with t = SCALE sinh w, in panels of at most this width in w."""


@cache
def gauss_legendre(count: int = 48) -> list[tuple[float, float]]:
    """Nodes in (0, 1) and their weights, which sum to 1, by the method of Golub and Welsch."""
    k = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = k / (4 * k**2 - 1).sqrt()
    matrix = torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return list(zip(((nodes + 1) / 2).tolist(), (vectors[0] ** 2).tolist(), strict=True))


def between(s: float, t: float, count: int = 12, panel: float = PANEL) -> tuple[Tensor, Tensor]:
    """Nodes from s to t and their weights, float64 [n]: Σ weight · f(node) = ∫_s^t f."""
    edges = panels(s, t, panel)
    nodes, weights = inside(edges[:-1], edges[1:], count)
    return nodes.flatten(), weights.flatten()


def panels(s: float, t: float, panel: float) -> Tensor:
    """The edges in w of equal panels from s to t, at least one."""
    start, end = math.asinh(s / SCALE), math.asinh(t / SCALE)
    count = max(math.ceil(abs(end - start) / panel), 1)
    return torch.linspace(start, end, count + 1, dtype=torch.float64)


def inside(start: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes, as times, and weights of panels [n] in w: two tensors [n, count]."""
    x, shares = torch.tensor(gauss_legendre(count), dtype=torch.float64).unbind(1)
    width = (end - start)[..., None]
    w = start[..., None] + width * x
    return SCALE * w.sinh(), SCALE * w.cosh() * width * shares


def lagrange(nodes: tuple[float, ...], times: Tensor) -> Tensor:
    """The Lagrange polynomials of J nodes at times [n]: [J, n]."""
    found = []
    for j, own in enumerate(nodes):
        factors = [(times - node) / (own - node) for i, node in enumerate(nodes) if i != j]
        found.append(math.prod(factors, start=torch.ones_like(times)))
    return torch.stack(found)


def magnus(rates: Tensor, weights: Tensor) -> Tensor:
    """X over each panel, [n, d, d], for X' = A X: exp of Magnus's series, of order 6.

    `rates` [n, 3, d, d] is A at the three Gauss nodes of a panel, with the weights of `inside`.
    """
    shares = torch.tensor([5 / 18, 8 / 18, 5 / 18], dtype=torch.float64)
    first, middle, last = (rates * (weights / shares)[..., None, None]).unbind(1)
    a = middle
    b = math.sqrt(15) / 3 * (last - first)
    c = 10 / 3 * (last - 2 * middle + first)
    ab = _commutator(a, b)
    abc = -_commutator(a, 2 * c + ab) / 60
    return (a + c / 12 + _commutator(-20 * a - c + ab, b + abc) / 240).matrix_exp()


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a
