"""A quick run of `sample` on the bundled model, and the images that it made."""

from pathlib import Path

from bdia_exp.cli.configs import call
from bdia_exp.cli.words import expand

QUICK = ["nfe=3", "device=cpu", "batch=16"]


def sample(out: Path, *overrides: str) -> dict:
    (words,) = expand("sample", (*QUICK, f"out={out}", *overrides), multirun=False)
    return call("sample", words)


def pngs(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("images/**/*.png"))}
