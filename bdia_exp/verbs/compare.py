"""`compare`: the scores of several runs, with intervals and paired differences from the first."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bdia_exp.console import say
from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import Asked
from bdia_exp.jobs.scoring import require_replaceable
from bdia_exp.report.cells import AS_ASKED
from bdia_exp.report.comparable import conditions, obstacle
from bdia_exp.report.markdown import markdown_table
from bdia_exp.report.statistics import Interval, difference, interval, told, told_difference
from bdia_exp.store import records
from bdia_exp.store.records import Record
from bdia_exp.verbs import Verb


@dataclass(frozen=True, kw_only=True)
class Comparison(Asked):
    """Runs; the first is the one that the others are compared with."""

    runs: list
    out: str | None

    def check(self) -> None:
        super().check()
        if len(self.runs) < 2:
            raise UserError("runs=: give two runs or more; the others are compared with the first")


@dataclass(frozen=True)
class Number:
    """A score of all images, and the same without each block of them."""

    value: float
    without_block: list[float]
    is_share: bool = False

    def text(self) -> str:
        """The number with its interval, if it has one."""
        if self.without_block:
            return told(interval(self.value, self.without_block), is_share=self.is_share)
        return f"{100 * self.value:.1f} %" if self.is_share else f"{self.value:.3f}"

    def minus(self, other: "Number") -> Interval | None:
        """The paired difference; None if one of the two has no blocks."""
        if not self.without_block or len(self.without_block) != len(other.without_block):
            return None
        return difference(self.value, self.without_block, other.value, other.without_block)


@dataclass(frozen=True)
class Scored:
    """A scored run: its place, its record, and the numbers of its score by their names."""

    name: str
    record: Record
    conditions: Record
    numbers: dict[str, Number]

    def is_paired_with(self, other: "Scored") -> bool:
        """Whether the differences of the two show something."""
        return obstacle(self.conditions, other.conditions) is None


def compare(asked: Comparison) -> Record:
    """Prints the scores of runs and their differences from the first. Returns them as a record.

    Raises UserError for a run without a score, and for scores that cannot be compared.
    """
    file = Path(asked.out).expanduser() if asked.out else None
    if file:
        ours = partial(records.is_of, command="compare")
        require_replaceable(file, ours, "an earlier result of `compare`")
    first, *others = runs = [_scored(str(name)) for name in asked.runs]
    for other in others:
        _require_comparable(first, other)
    names = [name for name in first.numbers if all(name in run.numbers for run in runs)]
    heads = ["run", "NFE", *(head for name in names for head in (name, f"{name} minus the first"))]
    rows, drawn = [], []
    for run in runs:
        nfe = run.record.get("nfe")
        row, found = [run.name, "–" if nfe is None else str(nfe)], Record()
        for name in names:
            number = run.numbers[name]
            paired = run is not first and run.is_paired_with(first)
            change = number.minus(first.numbers[name]) if paired else None
            shown = told_difference(change, is_share=number.is_share) if change else "–"
            row += [number.text(), shown]
            found[name] = asdict(number) | {"minus_first": change and asdict(change)}
        rows.append(row)
        about = {key: run.record.get(key) for key in ("identity", "commit", "nfe")}
        drawn.append({"run": run.name, **about, **found})
    say(f"{markdown_table(heads, rows)}\n\n{_about(runs)}")
    record = {**records.provenance(), "command": "compare", "runs": drawn}
    if file:
        records.save(file, record)
    return record


def _about(runs: Sequence[Scored]) -> str:
    """What holds for all numbers: the images, the features, and how they are paired."""
    first = runs[0]
    sentences = [f"{first.conditions['images']:,} images a run. {first.conditions['note']}."]
    if without := [run.name for run in runs if not run.numbers["FID"].without_block]:
        sentences.append(f"Too few images for an interval, or an old score: {', '.join(without)}.")
    if len(without) < len(runs):
        sentences.append("± is half of the 95 % interval.")
    others = [run.name for run in runs if not run.is_paired_with(first)]
    if others:
        unpaired = "Not known to have the seeds of the first run, so no difference is given"
        sentences.append(f"{unpaired}: {', '.join(others)}.")
    if len(others) < len(runs) - 1:
        by = "place in the set of images" if first.conditions["seeds"] is None else "seed"
        sentences.append(f"Differences are paired by {by}.")
    return " ".join(sentences)


def _scored(name: str) -> Scored:
    """A run's folder, or a record of `evaluate`. Raises UserError if it has no score."""
    path = Path(name).expanduser()
    file = path / "record.json" if path.is_dir() else path
    record = records.load(file)
    if record is None:
        raise UserError(
            f"{name} has no record: give the folder of a run of `sample`, or the .json of an "
            "`evaluate`"
        )
    score = record.get("score")
    if not score or record.get("complete") is False:
        raise UserError(f"{name} has no score: run the same `sample` with score=true to its end")
    try:
        return Scored(name, record, conditions(record), _numbers(score))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error!r}): run it again") from None


def _numbers(score: Record) -> dict[str, Number]:
    """The numbers of a score that are computed without each block, too."""

    def without(key: str) -> list[float]:
        return [float(part) for part in score.get(f"{key}_without_block") or []]

    found = {"FID": Number(float(score["fid"]), without("fid"))}
    for key in score:
        if key.endswith(AS_ASKED):
            name = f"{key.removesuffix(AS_ASKED)} as asked"
            found[name] = Number(float(score[key]), without(key), is_share=True)
    return found


def _require_comparable(one: Scored, other: Scored) -> None:
    """Raises UserError unless two scores have the same features, reference and number of images."""
    both, (a, b) = f"{one.name} and {other.name}", (one.conditions, other.conditions)
    why = {
        "features": f"are scored in different features ({a['note']}; {b['note']}): score both in "
        "the same ones",
        "reference": f"are scored against different references ({_reference(a)}; "
        f"{_reference(b)}): score both against the same file",
        "images": f"have {a['images']:,} and {b['images']:,} images: FID falls as the number of "
        "images grows, so compare equal numbers",
    }
    if found := why.get(obstacle(a, b) or ""):
        raise UserError(f"{both} {found}")


def _reference(conditions: Record) -> str:
    """The name of a reference, and the beginning of its sha256: two files may have one name."""
    name, sha256 = str(conditions["reference"]), str(conditions["reference_sha256"] or "")
    return f"{name}, sha256 {sha256[:8]}…" if sha256 else name


VERB = Verb(compare, Comparison)
