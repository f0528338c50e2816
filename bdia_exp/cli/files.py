"""The YAML files of configs/: commands, groups, choices, and what their comments say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from bdia_exp.errors import UserError

HERE = Path(__file__).parents[1]
CONFIGS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"


def groups() -> set[str]:
    """The folders of configs/: the groups of choices."""
    return {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}


def options(group: str) -> list[str]:
    """The names that may follow `group=`."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


@contextmanager
def reading() -> Iterator[None]:
    """Raises UserError if a file that is read in the block is not YAML; PyYAML says where."""
    try:
        yield
    except YAMLError as error:
        raise UserError(
            f"correct the YAML of a configuration: {' '.join(str(error).split())}"
        ) from None


@reading()
def loaded(file: Path) -> DictConfig:
    """A configuration file as it is written. Raises UserError if it is not YAML."""
    node = OmegaConf.load(file)
    if not isinstance(node, DictConfig):
        raise UserError(f"correct {file}: a configuration has keys with values")
    return node


def help_of(file: Path) -> list[str]:
    """The comment at the head of a configuration file, line by line; its first line is a title."""
    return [text for text in _head(file) if not text.startswith("@package")]


def is_global(file: Path) -> bool:
    """Whether a choice's keys are at the top of the configuration, not below its group."""
    return "@package _global_" in _head(file)


def _head(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)]


def about(file: Path) -> str:
    """The title of a configuration file."""
    return (help_of(file) or [""])[0]


def commands() -> list[str]:
    """The names of all commands: those of the configurations at the top."""
    return sorted(f.stem for f in CONFIGS.glob("*.yaml") if not f.stem.startswith("_"))


def text_of(command: str) -> str:
    """A command's configuration without its head, after those that it is built on."""
    text = (CONFIGS / f"{command}.yaml").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    bases = re.findall(r"^  - (_(?!self_)\w+)$", body, re.MULTILINE)
    return "\n".join([*(text_of(base) for base in bases), body])


def groups_of(command: str) -> list[str]:
    """The groups in which a command takes a choice."""
    return re.findall(r"^  - (\w+): ", text_of(command), re.MULTILINE)


def positional(command: str) -> str | None:
    """The key that a command's words without `=` are the value of: the first one left open."""
    found = re.search(r"^(?:  - )?(\w+): \?\?\?", text_of(command), re.MULTILINE)
    return found[1] if found else None
