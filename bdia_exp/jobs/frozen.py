"""Settings frozen in a file: a command that reads it does not compose configs/ again."""

from pathlib import Path
from typing import Any

import yaml

from bdia_exp.errors import UserError, brief
from bdia_exp.jobs.asked import Asked, Choice, as_key


def frozen(command: str, asked: Asked) -> str:
    """The text of the file: the command, the name chosen in each group, and every value."""
    choices = {
        as_key(key): value.name for key, value in vars(asked).items() if isinstance(value, Choice)
    }
    content = {"command": command, "choices": choices, "config": asked.plain()}
    head = f"# Settings of `bdia-exp {command}`, composed once. To run it: --config THIS_FILE\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def thawed(command: str, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The values in the file, as plain data, and the name chosen in each group.

    Raises UserError if there is no such file, if it is damaged, or if it is of another command.
    """
    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; `bdia-exp submit` writes it") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config {path} is damaged ({brief(error)}): submit again") from None
    parts = content if isinstance(content, dict) else {}
    config, choices = parts.get("config"), parts.get("choices")
    if not isinstance(config, dict) or not isinstance(choices, dict):
        raise UserError(f"--config {path} is not a file that `bdia-exp submit` wrote")
    if parts.get("command") != command:
        raise UserError(f"--config {path} is for {brief(parts.get('command'))}, not for {command}")
    return config, choices
