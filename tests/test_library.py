"""`from bdia_exp import …`: what a researcher uses from Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bdia_exp

README = (Path(__file__).parents[1] / "README.md").read_text()
FORBIDDEN = (
    "bdia_exp.metrics",
    "bdia_exp.cli",
    "diffusers",
    "transformers",
    "torchmetrics",
    "torch_fidelity",
    "torchvision",
    "matplotlib",
    "hydra",
    "omegaconf",
    "click",
)


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_ten_lines_of_python():
    """The README's own: they load, sample, invert, return, and compare every bit."""
    section = README.split("## Ten lines of Python\n")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line and not re.match("import|from", line)]
    assert len(lines) <= 10
    assert "assert torch.equal" in lines[-1]
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (4, 1, 32, 32)
    assert names["images"].float().std() > 30
    assert 0.8 < names["kept"]["z"].std() < 1.2, "the images became noise"


def test_the_names_bring_no_metrics_no_diffusers_and_no_command_line():
    names = ", ".join(bdia_exp.__all__)
    loaded = run(f"from bdia_exp import {names}\nimport sys\nprint(*sys.modules)").split()
    assert "bdia_exp.models.stable_diffusion" in loaded
    assert not {name for name in loaded if name in FORBIDDEN}


def test_the_package_alone_does_not_even_bring_torch():
    assert run("import bdia_exp, sys; print('torch' in sys.modules)") == "False"


def test_every_name_is_there_under_its_own_name():
    assert len(bdia_exp.__all__) == len(set(bdia_exp.__all__)) > 30
    for name in bdia_exp.__all__:
        found = getattr(bdia_exp, name)
        assert name in dir(bdia_exp)
        if callable(found) and hasattr(found, "__name__"):
            assert found.__name__ == ("load" if name.startswith("load_") else name)
    assert bdia_exp.load_edm.__module__ == "bdia_exp.models.edm"


def test_names_do_not_hide_modules_and_an_unknown_one_is_said():
    package = Path(bdia_exp.__file__).parent
    assert not {name for name in bdia_exp.__all__ if (package / f"{name}.py").exists()}
    assert not {name for name in bdia_exp.__all__ if (package / name).is_dir()}
    with pytest.raises(AttributeError, match="no attribute 'karas'"):
        bdia_exp.karas
    with pytest.raises(ImportError, match="karas"):
        from bdia_exp import karas  # noqa: F401
