#!/usr/bin/env python3
"""Breaks runs in many ways, continues them, and compares the result with an undisturbed run.

    python scripts/faults.py --out results/faults          # make test-faults

Every fault is real: processes are killed, a disk of a few kilobytes fills up, files are cut. It
prints a table, and writes it to --out as faults.md and faults.json. The exit status is 1 unless
every run ends equal: the same bytes of every shard, and the same score.

tried           how often the fault was made
images lost     images that the run had listed, and that the continued run does not have
made again      images that the next start had to make again: of unfinished and of damaged shards
ended           the most seconds from the fault to the end of all processes
equal           whether the run, continued to its end, is equal to the undisturbed one
said            the last line that the disturbed run printed
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from breaking import Bench, Broken, family, is_complete, listed, require_end, unfinished

from bdia_exp.console import say
from bdia_exp.report.markdown import markdown_table
from bdia_exp.store import records
from bdia_exp.store.files import write_text


@dataclass
class Found:
    """What one fault did."""

    fault: str
    tried: int = 0
    lost: int = 0
    again: int = 0
    seconds: float = 0.0
    equal: bool = False
    said: str = ""


# -- faults: each yields, for each time, the seconds until the broken run had ended --------------

Fault = Callable[[Bench, Path], Iterator[float]]


def kill(which: Callable[[int], list[int]], numbers: list[int], times: int = 1) -> Fault:
    """Sends signals to the processes that `which` finds, at random moments of as many starts."""

    def fault(bench: Bench, out: Path) -> Iterator[float]:
        for _ in range(times):
            started = bench.begin(out)
            pids = family(started.pid)
            bench.some_time(2 * times)
            for place, number in enumerate(numbers):
                time.sleep(1.5 * bool(place))  # a second one within a second is the same one
                for pid in which(started.pid):
                    os.kill(pid, number)
            yield require_end(started, pids)

    return fault


def the_launcher(pid: int) -> list[int]:
    return [pid]


def a_rank(pid: int) -> list[int]:
    """One of the processes that make images."""
    return [random.Random(pid).choice(family(pid) or [pid])]


def stopped(bench: Bench, out: Path) -> Iterator[float]:
    """A process stands still for five seconds, and goes on."""
    started = bench.begin(out)
    for pid in a_rank(started.pid):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(pid, signal.SIGCONT)
    started.wait()
    yield 0.0


def small_disk(first: str, later: str) -> Fault:
    """The run's folder is a disk of its own, mounted with options that do not let it finish."""

    def fault(bench: Bench, out: Path) -> Iterator[float]:
        out.mkdir()
        disk = ["mount", "-t", "tmpfs", "-o", first, "tmpfs", str(out)]
        if subprocess.run(disk, capture_output=True).returncode:
            raise PermissionError("only root can mount a small disk")
        try:
            started = bench.begin(out)
            yield require_end(started, family(started.pid))
            if not started.returncode:
                raise Broken("the run did not see the disk's limit")
            subprocess.run(["mount", "-o", f"remount,{later}", str(out)], check=True)
            bench.finish(out)
            kept = out.with_name("kept")
            shutil.copytree(out, kept)
        finally:
            subprocess.run(["umount", str(out)], check=True)
        out.rmdir()
        kept.rename(out)

    return fault


def another_checkpoint(bench: Bench, out: Path) -> Iterator[float]:
    """A run is killed, and its weights change: going on must be refused."""
    yield from kill(the_launcher, [signal.SIGKILL])(bench, out)
    other = bench.command(out, "model.checkpoint=random:1")
    done = subprocess.run(other, capture_output=True, text=True)
    (bench.root / "log.txt").write_text(done.stderr)
    if done.returncode != 1:
        raise Broken("the run went on with other weights")
    yield 0.0


def damaged(change: Callable[[Path], None]) -> Fault:
    """A file of the finished run changes; `verify` must find it."""

    def fault(bench: Bench, out: Path) -> Iterator[float]:
        shutil.copytree(bench.whole, out)
        change(out)
        check = [sys.executable, "-m", "bdia_exp", "verify", str(out)]
        done = subprocess.run(check, capture_output=True, text=True)
        (bench.root / "log.txt").write_text(done.stderr)
        if done.returncode != 1:
            raise Broken("verify does not see the damage")
        yield 0.0
        bench.finish(out)
        for file in out.glob("shards/*.damaged"):  # kept for the user, who may delete it
            file.unlink()

    return fault


def cut(out: Path) -> None:
    file = sorted(out.glob("shards/*.zip"))[1]
    os.truncate(file, file.stat().st_size // 2)


def flip(out: Path) -> None:
    file = sorted(out.glob("shards/*.zip"))[2]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def half_a_line(bench: Bench, out: Path) -> Iterator[float]:
    """The list of a killed process ends within a line."""
    yield from kill(the_launcher, [signal.SIGKILL])(bench, out)
    for own in out.glob("shards.*.csv"):
        text = own.read_text()
        own.write_text(text[: len(text) - 20])


def two_at_once(bench: Bench, out: Path) -> Iterator[float]:
    """A second run in the same folder must be refused, and the first must not suffer."""
    first = bench.begin(out)
    waiting = family(first.pid)
    for pid in waiting:
        os.kill(pid, signal.SIGSTOP)
    second = subprocess.run(bench.command(out), capture_output=True, text=True)
    for pid in waiting:
        os.kill(pid, signal.SIGCONT)
    first.wait()
    (bench.root / "log.txt").write_text(second.stderr)
    if second.returncode != 1:
        raise Broken("two runs worked in one folder")
    yield 0.0


def jumping_clock(bench: Bench, out: Path) -> Iterator[float]:
    """The clock of every process jumps by up to a day, back or forth, at every look at it."""
    folder = bench.root / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import random, time\nnow = time.time\n"
        "time.time = lambda: now() + random.uniform(-86400, 86400)\n"
    )
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        bench.command(out), env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    (bench.root / "log.txt").write_text(done.stdout + done.stderr)
    yield 0.0


def faults(kills: int) -> dict[str, Fault]:
    """Every fault, by its name."""
    return {
        "kill -9 of a process": kill(a_rank, [signal.SIGKILL], kills),
        "kill -9 of the launcher": kill(the_launcher, [signal.SIGKILL], kills),
        "SIGTERM": kill(the_launcher, [signal.SIGTERM]),
        "SIGUSR1": kill(the_launcher, [signal.SIGUSR1]),
        "SIGINT": kill(the_launcher, [signal.SIGINT]),
        "SIGINT, twice": kill(the_launcher, [signal.SIGINT, signal.SIGINT]),
        "SIGSTOP of a process for 5 s": stopped,
        "disk full at the record": small_disk("size=4k", "size=1g"),
        "disk full at a shard": small_disk("size=100k", "size=1g"),
        "disk full at a later shard": small_disk("size=600k", "size=1g"),
        "read-only folder": small_disk("ro,size=1g", "rw"),
        "the checkpoint changes": another_checkpoint,
        "a shard is cut": damaged(cut),
        "a bit of a shard flips": damaged(flip),
        "the list ends within a line": half_a_line,
        "two runs in one folder": two_at_once,
        "the clock jumps by days": jumping_clock,
    }


def measured(name: str, fault: Fault, bench: Bench) -> Found:
    """Breaks a run, continues it, and compares."""
    out, found = bench.root / "run", Found(name)
    shutil.rmtree(out, ignore_errors=True)
    before: set[str] = set()
    for seconds in fault(bench, out):
        found.tried += 1
        found.seconds = max(found.seconds, seconds)
        found.said = bench.said() or found.said
        now = listed(out)
        there = listed(bench.whole) if is_complete(out) else before
        found.again += bench.shard * len(there - now) + unfinished(out)
        before |= now
    bench.finish(out)
    found.lost = bench.shard * len(before - listed(out))
    found.equal = bench.is_equal(out)
    return found


def _table(rows: list[Found]) -> str:
    heads = ["fault", "tried", "images lost", "made again", "ended", "equal", "said"]
    cells = [
        [
            *(row.fault, str(row.tried), str(row.lost), str(row.again)),
            f"{row.seconds:.1f} s" if row.seconds > 0.01 else "–",
            *("yes" if row.equal else "**no**", row.said),
        ]
        for row in rows
    ]
    return markdown_table(heads, cells)


@click.command(help=__doc__)
@click.option("--images", default=3000, show_default=True)
@click.option("--shard", default=100, show_default=True)
@click.option("--processes", default=2, show_default=True)
@click.option("--kills", default=10, show_default=True, help="of a process, and of the launcher")
@click.option("--only", default="", help="only faults with this word in their name")
@click.option("--out", default="runs/faults", show_default=True, type=Path)
def main(images: int, shard: int, processes: int, kills: int, only: str, out: Path) -> None:
    rows: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(images, shard, processes, kills, Path(folder))
        bench.finish(bench.whole)
        bench.seconds = json.loads((bench.whole / "record.json").read_text())["seconds"]
        for name, fault in faults(kills).items():
            if only not in name:
                continue
            try:
                rows.append(measured(name, fault, bench))
            except PermissionError as why:
                say(f"{name}: left out, {why}")
                continue
            except Broken as why:
                rows.append(Found(name, tried=1, said=str(why)))
            say(str(asdict(rows[-1])))
    if only:  # the other faults stay as they were measured before
        before = (records.load(out / "faults.json") or {}).get("faults", [])
        again = {row.fault: row for row in rows}
        rows = [again.pop(old["fault"], Found(**old)) for old in before] + [*again.values()]
    out.mkdir(parents=True, exist_ok=True)
    about = f"{images} images in shards of {shard}, {processes} processes."
    write_text(out / "faults.md", f"# Faults\n\n{about}\n\n{_table(rows)}\n")
    found: Any = {"images": images, "shard": shard, "processes": processes}
    found["faults"] = [asdict(row) for row in rows]
    records.save(out / "faults.json", {**records.provenance(), **found})
    say(f"\n{_table(rows)}\nwritten to {out}: faults.md, faults.json")
    raise SystemExit(not all(row.equal and not row.lost for row in rows))


if __name__ == "__main__":
    main()
