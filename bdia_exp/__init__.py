"""bdia-exp: an experiment runner for diffusion samplers. Read samplers/core.py first.

As a library: `from bdia_exp import karras, heun, …`, the names in `__all__`. A name is imported
when it is first used, so `import bdia_exp` itself is fast.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "samplers.core": "CLEAN Counted Estimate Level transfer",
    "samplers.schedules": "DiscreteVP edm linear_vp rectified scaled_linear_vp vp",
    "samplers.grids": "arc karras leading quad quadratic_time time_uniform trailing uniform",
    "samplers.rules": "ddim deis dpmpp leapfrog plms",
    "samplers.coupling": "CBDIA EDICT",
    "samplers.rex": "Rex",
    "samplers.loops": "bdia cbdia edict heun multistep pndm rex",
    "samplers.linear": "CLD",
    "samplers.gddim": "predict_correct predictor stochastic",
    "samplers.cost": "evaluations grid_for",
    "samplers.inversion": "BDIAInversion CoupledInversion DDIMInversion FixedPointInversion",
    "samplers.guidance": "guided",
    "seeds": "Generators",
    "errors": "UserError",
    "models": "Classes Text",
    "models.toy": "Gaussian GaussianMixture",
    "models.langevin": "cld",
}
_LOADERS = {
    "load_edm": "models.edm",
    "load_ddpm": "models.ddpm",
    "load_stable_diffusion": "models.stable_diffusion",
}
_WHERE = {
    **{name: (module, name) for module, names in _NAMES.items() for name in names.split()},
    **{name: (module, "load") for name, module in _LOADERS.items()},
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
