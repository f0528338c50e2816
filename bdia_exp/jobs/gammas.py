"""The γ of a sampler's configuration: its values, a run's name by them, and what is refused."""

from typing import Any

from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Choice
from bdia_exp.samplers.core import Sampler
from bdia_exp.samplers.weights import OBELM, as_number
from bdia_exp.store.records import Record

GAMMAS = ("gamma", "gamma1", "gamma2")


def gammas_of(sampler: Record) -> list[Any]:
    """Every γ of a sampler's configuration, in the order of its keys; [] for a base method.

    A γ may be a number, a list, "obelm", or the file that has it.
    """
    found = [sampler[key] for key in GAMMAS if key in sampler]
    return found if any(found) else []


def full_name(sampler: Choice[Sampler]) -> str:
    """The name of a sampler with its γ, as a folder is called: bdia_ddim-gamma0.5."""
    gammas = gammas_of(sampler.config)
    if not gammas:
        return sampler.name
    (gamma,) = gammas if len(gammas) == 1 else (None,)
    if isinstance(gamma, str):
        return f"{sampler.name}-{OBELM if gamma == OBELM else 'fitted'}"
    if isinstance(gamma, list):
        return f"{sampler.name}-gammas"
    return f"{sampler.name}-gamma{','.join(f'{g:g}' for g in gammas)}"


def require_gammas(sampler: Record) -> None:
    """Raises UserError unless every γ of a sampler's configuration is from 0 to 1.

    The solvers also accept larger values: 1/γ runs them backwards. The numbers of a list may be
    any, and a text is "obelm" or names a file.
    """
    for key in GAMMAS:
        gamma = sampler.get(key, 0.0)
        if isinstance(gamma, list):
            for each in gamma:
                as_number(each)
        elif isinstance(gamma, (bool, dict, type(None))) or (
            not isinstance(gamma, str) and not 0 <= gamma <= 1
        ):
            raise UserError(
                f"sampler.{key}={gamma} must be 0 to 1: 0 is the base method, 1 is BDIA "
                "as in Tables 2 and 3"
            )
