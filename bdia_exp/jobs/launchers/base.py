"""Launchers: where the tasks of a command run, and the scripts that run them.

The scripts are made from the files in scripts/, where `@{name}` is filled in. Each launcher is a
choice of configs/launcher.
"""

import re
import shlex
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from bdia_exp.console import positive
from bdia_exp.errors import UserError, brief

SCRIPTS = Path(__file__).parent / "scripts"
TASKS, LAST = "tasks.sh", "last.sh"
"""The names of the scripts: of the tasks, and of the command that runs after them."""


@dataclass(frozen=True)
class Work:
    """What a launcher runs: tasks, which are independent of each other, then one last command."""

    title: str
    folder: Path
    """It holds the scripts, the frozen settings and the logs."""
    command: str
    """The words after `bdia-exp`, as bash reads them. `$task` is the number of a task, from 1."""
    tasks: int | None
    """How many; None: one task without a number."""
    last: str | None = None
    """The words of the command after all tasks."""


class _Template(string.Template):
    delimiter = "@"


def filled(name: str, **values: object) -> str:
    """A file of scripts/ with its values."""
    text = (SCRIPTS / name).read_text(encoding="utf-8")
    return _Template(text).substitute({key: str(value) for key, value in values.items()})


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """What every launcher knows. Raises UserError for values that no script can hold."""

    python: str | None = None
    """The command that starts Python, as bash reads it; None: the Python that runs now."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash before the work: modules, a virtual environment."""
    array: int | None = None
    """The number of parts of a run of `sample`."""
    at_once: int | None = None
    """How many tasks run at the same time; None: as many as there is room for."""
    processes: int | None = None
    """Processes of a task on each node."""

    def __post_init__(self) -> None:
        for key in ("array", "at_once", "processes"):
            positive(f"launcher.{key}", getattr(self, key))
        for each in fields(self):
            value = getattr(self, each.name)
            several = isinstance(value, Sequence) and not isinstance(value, str)
            for text in value if several else [value]:
                if not isinstance(text, (str, int, type(None))) or not str(text).isprintable():
                    raise UserError(
                        f"launcher.{each.name}={brief(text)} must be text on one line: give "
                        "several lines as a list"
                    )

    @property
    def on_each_node(self) -> int:
        """Processes of a task on each node."""
        return self.processes or 1

    @property
    def machines(self) -> int:
        """Nodes of a task."""
        return 1

    def header(self, work: Work, last: bool) -> list[str]:
        """The lines at the top of a script that its scheduler reads."""
        return []

    def scripts(self, work: Work) -> dict[str, str]:
        """The scripts: name → text. Raises UserError for a folder that no script can name."""
        if not str(work.folder.absolute()).isprintable() or '"' in str(work.folder.absolute()):
            raise UserError(
                f"out={brief(work.folder.parent)}: a scheduler cannot read a quotation mark or a "
                "control character in a folder's name: choose another out="
            )
        found = {TASKS: self._script(work, last=False)}
        if work.last:
            found[LAST] = self._script(work, last=True)
        return found

    def _script(self, work: Work, *, last: bool) -> str:
        several = not last and self.machines > 1
        tasks = None if last else work.tasks
        text = filled(
            "job.sh",
            header="\n".join(self.header(work, last)),
            title=f"{work.title}{', the last job' if last else ''}",
            folder=shlex.quote(str(Path.cwd())),
            setup="".join(f"{line}\n" for line in self.setup),
            task=filled("task.sh", tasks=tasks) if tasks else "",
            nodes=filled("nodes.sh") if several else "",
            command=self._command(work.last if last and work.last else work.command, last),
            requeue=self.requeued(),
        )
        return re.sub(r"\n{3,}", "\n\n", text).replace("#!/bin/bash\n\n", "#!/bin/bash\n")

    def _command(self, words: str, last: bool) -> str:
        command = f"{self.python or shlex.quote(sys.executable)} -m bdia_exp {words}"
        if last or (self.on_each_node, self.machines) == (1, 1):
            return command
        command += f" -p {self.on_each_node}"
        if self.machines > 1:
            prefix = "srun --ntasks-per-node=1 --kill-on-bad-exit=1"
            command = f'{prefix} {command} --nodes {self.machines} --meet "$meet"'
        return command

    def requeued(self) -> str:
        """The lines that put a job back into the queue."""
        return ""

    def require(self) -> None:
        """Raises UserError if this machine does not have what starts the work."""

    def check(self, work: Work) -> None:
        """Raises UserError if the work must not start now. Nothing is written before."""

    def start(self, work: Work) -> None:
        """Starts the work, whose scripts are written. Raises UserError if a part of it fails."""
        raise NotImplementedError

    def commands(self, work: Work) -> list[str]:
        """The commands that start the work, as a person would type them."""
        script = shlex.quote(str(work.folder / TASKS))
        found = [f"bash {script}"]
        if work.tasks:
            found = [f"for task in $(seq {work.tasks}); do bash {script} $task; done"]
        return [*found, *([f"bash {shlex.quote(str(work.folder / LAST))}"] if work.last else [])]
