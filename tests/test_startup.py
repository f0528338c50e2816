"""What importing costs: packages that only some verbs need are imported by those verbs."""

import subprocess
import sys

import pytest

from bdia_exp.verbs import names

HEAVY = ["torchmetrics", "torch_fidelity", "torchvision", "transformers", "diffusers", "matplotlib"]
MODULES = [
    *["models.edm", "models.ddpm", "models.stable_diffusion", "models.toy", "models.estimates"],
    *["metrics.score", "metrics.inception", "metrics.samples", "metrics.clip"],
    *[f"verbs.{name}" for name in names()],
]


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The packages in a fresh process that has imported all modules which verbs begin with."""
    imports = "; ".join(f"import bdia_exp.{module}" for module in MODULES)
    program = f"import sys; {imports}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return set(done.stdout.decode().split())


@pytest.mark.parametrize("package", [*HEAVY, "sympy", "triton"])
def test_a_heavy_package_waits_until_it_is_needed(loaded, package):
    assert package not in loaded
    assert "torch" in loaded


def test_sampling_does_not_load_pytorchs_compiler(tmp_path):
    """It takes as long to load as PyTorch. Products of tensors on the meta device load it."""
    words = ["sampler=ddim", "nfe=1", "images=1", "save=none", f"out={tmp_path}", "device=cpu"]
    program = (
        "import sys; from bdia_exp.cli import main; "
        f"main(['sample', *{words}], standalone_mode=False); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.decode().split()[-1] == "False"
