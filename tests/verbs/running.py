"""Quick runs of `sample`: on the bundled model, and of shards; and the images that were made."""

from pathlib import Path

from bdia_exp.cli.configs import call
from bdia_exp.cli.words import expand

QUICK = ["nfe=3", "device=cpu", "batch=16"]
TOY = ["model=toy", "sampler=ddim", "nfe=1", "device=cpu", "images=200", "batch=16"]
SHARDS = [*TOY, "save=shards", "shard=30", "score=true"]


def as_asked(out: Path, *overrides: str) -> dict:
    (words,) = expand("sample", (*overrides, f"out={out}"), multirun=False)
    return call("sample", words)


def sample(out: Path, *overrides: str) -> dict:
    return as_asked(out, *QUICK, *overrides)


def run(out: Path, *overrides: str) -> dict:
    return as_asked(out, *SHARDS, *overrides)


def pngs(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("images/**/*.png"))}
