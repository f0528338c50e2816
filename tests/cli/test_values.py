"""Every number of samplers and grids with values that it cannot have: a sentence, or a run."""

import pytest
from omegaconf import OmegaConf

from bdia_exp.cli.configs import composed, settings
from bdia_exp.cli.files import options
from bdia_exp.errors import UserError
from bdia_exp.samplers.cost import affordable
from bdia_exp.samplers.schedules import linear_vp

HOSTILE = ["0", "-1", "nan", "inf", "-inf", "1e308", "1e-308", "1" + "0" * 13, "[1]", "{}", "x"]
HOSTILE += ["null", "true", "''"]
SCHEDULE = linear_vp()


def keys_of(node: dict, prefix: str) -> list[str]:
    """The dotted keys of all values, and of all calls but the outermost one."""
    found = []
    for key, value in node.items():
        found.append(f"{prefix}.{key}")
        found += keys_of(value, found[-1]) if isinstance(value, dict) else []
    return found


CASES = [("grid", name) for name in options("grid")]
CASES += [("sampler", name) for name in ("bdia_edm", "edm_churn", "bdia_dpmpp_2m", "bdia_deis")]
CASES += [("sampler", name) for name in ("f_pndm", "edict", "cbdia", "bdia2", "rex")]


@pytest.mark.parametrize(("group", "name"), CASES)
def test_a_hostile_value_gets_a_sentence_or_runs(group, name):
    words = [f"{group}={name}", *(["sampler=ddim"] if group == "grid" else [])]
    plain = OmegaConf.to_container(composed("sample", words)[0][group])
    for key in keys_of(plain, group):
        for value in HOSTILE:
            told = outcome([*words, f"{key}={value}"])
            assert "\n" not in told
            assert len(told) < 500


def outcome(words: list[str]) -> str:
    """What is said of these words; nothing if the sampler runs."""
    try:
        asked = settings("sample", words)
        affordable(asked.sampler.make, lambda steps: asked.grid.make(steps, SCHEDULE), 16)
    except UserError as error:
        return str(error)
    return ""
