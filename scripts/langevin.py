"""The noise estimate along a path of Langevin diffusion, and the error of its samplers.

    python scripts/langevin.py results/gddim

Writes noise.png (gDDIM's Figures 1 and 4: ε along one exact path, for K = L and K = R) and
accuracy.json and accuracy.md: the RMS error in x on the bundled model, 16 noises, against 128
steps of four evaluations, beside BDIA-DDIM and DDIM on VP levels against theirs.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bdia_exp.jobs.problems import last
from bdia_exp.models import Model
from bdia_exp.models.edm import load
from bdia_exp.models.langevin import cld, paired
from bdia_exp.models.toy import GaussianMixture
from bdia_exp.report import figures
from bdia_exp.report.markdown import markdown_table
from bdia_exp.samplers.core import Denoiser, Grid, Sampler
from bdia_exp.samplers.fitted import rms
from bdia_exp.samplers.gddim import predictor
from bdia_exp.samplers.grids import arc, quadratic_time
from bdia_exp.samplers.linear import CLD
from bdia_exp.samplers.loops import multistep
from bdia_exp.samplers.rules import plms
from bdia_exp.seeds import Generators
from bdia_exp.store.files import write_text

DIFFUSION, SEEDS, NFES, FINE = CLD(), range(16), (10, 20, 50), 128
DATA = GaussianMixture([[-0.8], [0.5]], [0.15, 0.25], [0.4, 0.6])


def gddim(order: int, K: str = "R") -> Sampler:
    return partial(multistep, rule=partial(predictor, order=order, K=K))


ON_CLD: dict[str, Sampler] = {
    **{f"gDDIM, order {order}": gddim(order) for order in (1, 2, 3, 4)},
    "gDDIM, order 1, K = L": gddim(1, "L"),
    "gDDIM, order 3, K = L": gddim(3, "L"),
    "BDIA on gDDIM, γ = 1": partial(multistep, gamma=1.0),
    "BDIA on gDDIM, γ = 0.5": partial(multistep, gamma=0.5),
}
ON_VP: dict[str, Sampler] = {
    "DDIM (VP levels)": multistep,
    "BDIA-DDIM, γ = 1 (VP levels)": partial(multistep, gamma=1.0),
    "BDIA-DDIM, γ = 0.5 (VP levels)": partial(multistep, gamma=0.5),
}


def path(steps: int = 400) -> tuple[list[float], list[Tensor], list[Tensor], list[Tensor]]:
    """Times, states, ε^R and ε^L, [2] each, along one exact path of the mixture."""
    network = paired(DATA.denoiser(), DIFFUSION)
    u = torch.tensor([[[0.9], [0.3]]], dtype=torch.float64)
    grid = quadratic_time(steps, DIFFUSION, final="first")
    states = [u, *multistep(network, u, grid, rule=partial(predictor, order=4))]
    noises = [network(z, level).eps for z, level in zip(states, grid, strict=True)]
    turned = [
        (DIFFUSION.in_root(level.time, "L") * eps).flatten()
        for eps, level in zip(noises, grid, strict=True)
    ]
    times = [level.time for level in grid]
    return times, [z.flatten() for z in states], [eps.flatten() for eps in noises], turned


def accuracy() -> dict[str, dict[str, float]]:
    """Method → NFE → RMS error in x."""
    own, found = load("bundled:fashion_mini.safetensors"), {}
    for model, samplers, fine, make in (
        (cld(own), ON_CLD, gddim(4), partial(quadratic_time, schedule=DIFFUSION, final="first")),
        (own, ON_VP, partial(multistep, rule=plms), arc),
    ):
        end = partial(end_of, model, make)
        exact = end(fine, FINE)
        for name, sampler in samplers.items():
            found[name] = {str(nfe): rms(end(sampler, nfe) - exact) for nfe in NFES}
            print(name, found[name], flush=True)
    return found


def end_of(model: Model, make: Callable[[int], Grid], sampler: Sampler, steps: int) -> Tensor:
    """The images, or the images x of pairs, at the end of a grid of so many steps."""
    rng, grid = Generators(SEEDS), make(steps)
    z = model.start(rng, grid[0])
    network: Denoiser = model.denoiser(rng.randint(model.num_classes))
    end = last(sampler(network, z, grid))
    return end[:, 0] if end.ndim == 5 else end


def main(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    figures.noise_paths(*path(), root / "noise.png")
    found = accuracy()
    write_text(root / "accuracy.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    rows = [[name, *(f"{error:.4f}" for error in of.values())] for name, of in found.items()]
    heads = ["RMS error in x, NFE", *map(str, NFES)]
    write_text(root / "accuracy.md", markdown_table(heads, rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    main(parser.parse_args().root)
