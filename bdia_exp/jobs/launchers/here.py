"""Launchers without a scheduler: run the scripts on this machine, or print them."""

import subprocess
import time
from dataclasses import dataclass

from bdia_exp.console import say
from bdia_exp.errors import UserError, few
from bdia_exp.jobs.launchers.base import LAST, TASKS, Launcher, Work

LOOK = 0.1
"""Seconds between two looks at the tasks that run."""


@dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """Runs the scripts here, now: one task after another, or several at the same time."""

    def start(self, work: Work) -> None:
        """Runs all tasks, then the last command, also if a task failed."""
        script = str(work.folder / TASKS)
        calls = [["bash", script, str(i + 1)] for i in range(work.tasks or 0)] or [["bash", script]]
        failed = _run(calls, self.at_once or 1)
        if work.last:
            failed |= _run([["bash", str(work.folder / LAST)]], 1)
        if failed:
            names = [f"`{call}` (exit status {status})" for call, status in failed.items()]
            raise UserError(f"{len(failed)} of the scripts failed: {few(names)}; submit again")


def _run(calls: list[list[str]], at_once: int) -> dict[str, int]:
    """Runs commands, `at_once` at the same time; those that failed, with their exit status."""
    waiting, running, failed = [*calls], list[subprocess.Popen](), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(subprocess.Popen(waiting.pop(0)))
            time.sleep(LOOK)
            for process in [each for each in running if each.poll() is not None]:
                running.remove(process)
                if process.returncode:
                    failed[" ".join(map(str, process.args))] = process.returncode  # type: ignore
    finally:
        for process in running:  # this process was asked to stop
            process.terminate()
        for process in running:
            process.wait()
    return failed


@dataclass(frozen=True, kw_only=True)
class Bash(Launcher):
    """Writes the scripts and prints them, for other schedulers."""

    def start(self, work: Work) -> None:
        for name, text in self.scripts(work).items():
            say(f"# ---- {work.folder / name}\n{text}")
        say("# ---- to run it: " + "; then ".join(self.commands(work)))
