"""pyproject.toml names every package that the code imports."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "yaml": "omegaconf",
    "hydra": "hydra-core",
    "urllib3": "requests",
}
"""Modules that have another name than their package; PyYAML comes with OmegaConf."""
EXTRA = {"diffusers", "transformers", "opencv-python-headless", "huggingface-hub", "tokenizers"}
"""Packages of the extra `sd`, and those that come with them."""


def declared(section: str) -> set[str]:
    """The packages in a list of pyproject.toml (Python 3.10 has no reader of TOML)."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(rf"^{section} = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert found
    return set(re.findall(r'^ *"([\w-]+)', found[1], re.MULTILINE))


def imported(folder: str) -> set[str]:
    """The packages, other than this one, that the modules of a folder import anywhere."""
    names: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    names -= {"bdia_exp", *sys.stdlib_module_names}
    return {NAMES.get(name, name.replace("_", "-")) for name in names}


@pytest.mark.quick
def test_every_package_that_is_imported_is_a_dependency():
    assert imported("bdia_exp") - EXTRA <= declared("dependencies")
    assert declared("dependencies") <= imported("bdia_exp") | {"cmaes"}
    assert {"diffusers", "transformers"} <= declared("sd")
