"""What the scripts of this folder share: times measured in turn, and results as table and JSON."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bdia_exp.cli.configs import settings
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError
from bdia_exp.jobs.settings import Sampling
from bdia_exp.report.markdown import markdown_table
from bdia_exp.store import records

Row = dict[str, Any]


def options(doc: str | None) -> argparse.ArgumentParser:
    """A command line with --out, the folder of the JSON; `doc` is the script's own text."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder in which the results are written as JSON")
    return parser


def as_script(main: Callable[[], None]) -> None:
    """Runs a script; what a user can cause ends it with one sentence."""
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")


def asked_of(words: Sequence[str]) -> Sampling:
    """What `bdia-exp sample` with these words is asked for."""
    (overrides,) = expand("sample", list(words), multirun=False)
    asked: Sampling = settings("sample", overrides)
    return asked


@contextmanager
def another_process() -> Iterator[Callable[..., Any]]:
    """A function that calls a function with its arguments in one other process, and waits for it.

    For another program: ours changes how its own process allocates memory.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield lambda function, *inputs: process.submit(function, *inputs).result()


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round. Each round does all runs, one after the other."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    return taken


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call, with the CUDA kernels that it started."""
    _wait()
    began = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(of: Sequence[float], to: Sequence[float]) -> Row:
    """The ratio of median times, and the least and greatest ratio of one round."""
    each = [a / b for a, b in zip(of, to, strict=True)]
    return {
        "ratio": statistics.median(of) / statistics.median(to),
        "least": min(each),
        "greatest": max(each),
    }


def machine() -> Row:
    """What the figures depend on: processor, cores, threads, GPU, versions and commit."""
    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        names = [line for line in about.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": cpu, "cores": cores, "threads": torch.get_num_threads(), "gpu": gpu}
    return {**found, **records.provenance()}


def report(name: str, rows: Sequence[Row], out: Path | None, **more: Any) -> None:
    """Prints the rows as a Markdown table; with `out`, also writes `out`/`name`.json."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    print(markdown_table(heads, [[_text(row.get(head)) for head in heads] for row in rows]))
    for key, value in more.items():
        print(f"{key}: {_text(value)}")
    if out:
        records.save(out / f"{name}.json", {"machine": machine(), **more, "rows": list(rows)})
        print(f"written to {out / name}.json")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
