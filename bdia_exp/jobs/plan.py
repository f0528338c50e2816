"""The plan of an experiment: what its runs cost, and what is missing on this machine."""

from collections.abc import Callable, Iterable
from functools import partial

from bdia_exp.errors import UserError
from bdia_exp.jobs.asked import sources_of
from bdia_exp.jobs.experiments import Run
from bdia_exp.jobs.identity import files_of
from bdia_exp.jobs.pace import Pace
from bdia_exp.jobs.references import NO_REFERENCE
from bdia_exp.jobs.sampling import require_possible
from bdia_exp.metrics import inception
from bdia_exp.metrics.frechet import require_enough, sums_size
from bdia_exp.metrics.moments import Statistics
from bdia_exp.models.estimates import Cost, cost_of, in_bytes
from bdia_exp.sources import checkpoints
from bdia_exp.store.image_sets import is_image_set
from bdia_exp.store.records import Record


class Costs:
    """Estimated costs of runs; each model and batch size is estimated once.

    A cost is None if neither the configuration nor a checkpoint file describes the network.
    """

    def __init__(self) -> None:
        self._known: dict[str, Cost | None] = {}

    def of(self, run: Run) -> Cost | None:
        """The estimated cost of this run's model."""
        asked = run.asked
        how: Record = {key: getattr(asked, key) for key in ("batch", "dtype", "guidance")}
        key = f"{asked.model.config} {how}"
        if key not in self._known:
            self._known[key] = cost_of(asked.model.make, **how)
        return self._known[key]

    def flops(self, runs: Iterable[Run]) -> tuple[float, float] | None:
        """Floating-point operations of sampling and of decoding; None if not known."""
        sampling = decoding = 0.0
        for run in runs:
            cost = self.of(run)
            if cost is None:
                return None
            sampling += run.evaluations * cost.flops
            decoding += run.images * cost.decoding.flops
        return sampling, decoding


def described(title: str, plan: list[Run], todo: set[int], costs: Costs, pace: Pace) -> str:
    """The plan as text: every cell, its state, and the cost of its runs in `todo`."""

    def hours(runs: list[Run]) -> str:
        flops = sum(costs.flops(runs) or ())
        return f", {_hours(flops, pace)} {pace.hours}" if flops else ""

    left = [plan[i] for i in sorted(todo)]
    by_cell: dict[str, list[int]] = {}
    for i, run in enumerate(plan):
        by_cell.setdefault(run.cell.name, []).append(i)
    ranges = len(plan) // len(by_cell)
    each = f"{plan[0].images:,} images" if ranges == 1 else f"{ranges} × {plan[0].images:,} images"
    lines = [
        f"{title}: {len(by_cell)} cells of {each}; {len(plan) - len(left)} of {len(plan)} runs are "
        f"there, {len(left)} to run: {sum(run.evaluations for run in left):,} network evaluations"
        f"{hours(left)}"
    ]
    width = max(map(len, by_cell))
    for name, indices in by_cell.items():
        runs = [plan[i] for i in indices if i in todo]
        state = f"to run {len(runs)}/{len(indices)}" if runs else "there"
        cost = f"{sum(r.evaluations for r in runs):13,} evaluations{hours(runs)}" if runs else ""
        lines.append(f"  {state:12} {name:{width}} {cost}".rstrip())
    if flops := costs.flops(left):
        lines += _speed(*flops, pace)
    return "\n".join(lines + _memory(left, costs) + _scoring(left) + _disk(left, costs))


def _hours(flops: float, pace: Pace) -> str:
    number = flops / pace.tflops / 1e12 / 3600
    if number < 0.001:
        return "under 0.001"
    return f"{number:,.1f}" if number >= 0.1 else f"{number:.2g}"


def _speed(sampling: float, decoding: float, pace: Pace) -> list[str]:
    """The hours of sampling and of decoding."""
    if not sampling:
        return []
    of = "sampling alone"
    if decoding:
        of = f"sampling {_hours(sampling, pace)}, decoding {_hours(decoding, pace)}"
    return [f"  {pace.hours}: {of}, at {pace.tflops:.6g} TFLOP/s sustained ({pace.source})"]


def _memory(runs: list[Run], costs: Costs) -> list[str]:
    """A line for each model: the memory of its weights and its largest batch."""
    largest: dict[str, tuple[int, str]] = {}
    for run in runs:
        if cost := costs.of(run):
            name, total = run.asked.model.name, cost.working_set + cost.weights_size
            line = f"  memory of {name}: {cost.memory(run.asked.batch)}"
            largest[name] = max(largest.get(name, (0, "")), (total, line))
    return [line for _, line in largest.values()]


def _scoring(runs: list[Run]) -> list[str]:
    """The memory of the score's sums, if its features are many."""
    dim = max((run.asked.features.config.get("dim", 0) for run in runs), default=0)
    size = sums_size(dim)
    if size < 10 << 20:
        return []
    return [f"  memory of the score: {in_bytes(size)} in each process, sums of {dim:,} features"]


def _disk(runs: list[Run], costs: Costs) -> list[str]:
    """Upper bound on disk space: all runs' images, or one run's with save=scratch."""
    kept: dict[str, list[int]] = {}
    for run in runs:
        if cost := costs.of(run):
            save = run.asked.save or run.asked.usual_save
            kept.setdefault(save, []).append(run.images * cost.image_size)
    kept.pop("none", None)
    lines = []
    for save, sizes in kept.items():
        total, of = (max(sizes), "one run") if save == "scratch" else (sum(sizes), "all runs")
        lines.append(f"  disk: at most {in_bytes(total)}, the images of {of} (save={save})")
    return lines


class Needs:
    """Checks whether this machine has what runs need; each need is checked once."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def lacking(self, run: Run) -> list[str]:
        """The reasons why this run cannot start, after trying downloads; empty if it can."""
        asked = run.asked
        questions: dict[str, Callable[[], object]] = {
            str(asked.model.config): partial(asked.model.make, device="cpu", dtype="auto"),
            f"{asked.reference}, {run.images} images": partial(
                _enough, asked.reference, run.images
            ),
            str(asked.features.config): partial(asked.features.make, device="cpu"),
        }
        for key, source in sources_of(asked).items():
            if key != "reference":
                questions[f"{key}={source}"] = partial(checkpoints.locate, source)
        for question, ask in questions.items():
            if question not in self._known:
                self._known[question] = _reason(ask)
        if lacks := [why for question in questions if (why := self._known[question])]:
            return lacks
        misfit = _reason(partial(require_possible, asked))
        return [misfit] if misfit else []


def _reason(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except UserError as error:
        return str(error)
    return None


def _enough(reference: str | None, images: int) -> None:
    """Raises UserError unless the reference can be read, and there are images enough for a FID."""
    if reference is None:
        raise UserError("this model has no default reference: give reference= in overrides=")
    path = checkpoints.locate(reference, NO_REFERENCE)
    if not is_image_set(path):
        require_enough(images, Statistics.load(path).dim)


def refused(runs: Iterable[Run]) -> list[str]:
    """Why some of these runs could not start, as far as their files are here."""
    runs = list(runs)
    pairs = {(run.asked.reference, run.images) for run in runs if run.asked.reference}
    asks: list[Callable[[], object]] = [
        partial(_enough, *pair) for pair in sorted(pairs) if checkpoints.present(pair[0])
    ]
    asks += [partial(require_possible, run.asked) for run in runs]
    return list(dict.fromkeys(why for why in map(_reason, asks) if why))


def absent(run: Run) -> list[str]:
    """The files that this run reads and that are not on this machine."""
    files = files_of(run.asked, coefficients_too=False)  # these can be made
    names = [*files.values(), *sources_of(run.asked).values()]
    if "inception" in run.asked.features.config["_target_"] and not inception.weights_are_here():
        names.append(f"fetch:{inception.TORCH_FIDELITY}")
    published = dict.fromkeys(name for name in names if not name.startswith("random:"))
    return [name for name in published if checkpoints.present(name) is None]
