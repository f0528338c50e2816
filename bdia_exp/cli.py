"""The command line: click commands over Hydra configurations. The only importer of both.

Every command composes the configuration of its name, builds what the configuration describes and
calls the function of that name in `bdia_exp.run`. Whatever a user can mend is answered with one
sentence and a non-zero exit status.
"""

import errno
import inspect
import keyword
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import click
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bdia_exp.errors import UserError, nearest
from bdia_exp.overrides import quoted

HERE = Path(__file__).parent
CONFIGS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"
POSITIONAL = {
    "evaluate": "images",
    "invert": "images",
    "roundtrip": "images",
    "edit": "images",
    "edits": "images",
    "reference": "images",
    "reproduce": "experiment",
    "table": "experiment",
    "fetch": "what",
}
"""The key that a command's words without `=` in front are the value of, joined by commas."""
BROUGHT = {"features", "reference", "resize", "prompts", "batch"}
"""The keys that a model may bring; commands that do not take one leave it."""
TEXTS = {"prompt", "to"}
"""The keys whose values are texts, whatever they look like; `to` may be a class, too."""
COMPOSING = {"edits": "edit"}
"""What a command that runs others runs, where that is not `sample`."""
PARALLEL = ("sample", "evaluate", "reference", "reproduce", "sweep")
"""The commands that several processes share the work of."""


# -- configurations ------------------------------------------------------------------------------


def options(group: str) -> list[str]:
    """The names that may follow `group=`."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def about(file: Path) -> str:
    """The first sentence-long comment of a configuration file."""
    lines = (line[2:].strip() for line in file.read_text().splitlines() if line.startswith("# "))
    return next((line for line in lines if not line.startswith("@package")), "")


def composed(command: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of a command, and the name chosen in each group.

    Raises UserError, naming what is nearest, for a key or a choice that does not exist.
    """
    try:
        return _composed(command, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(command, overrides, error)) from None


def _composed(command: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The same, with Hydra's own exceptions."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(command, overrides, return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    tree.pop("hydra")
    chosen = {k: v for k, v in choices.items() if not k.startswith("hydra/")}
    return OmegaConf.create(tree), chosen


def _explain(command: str, overrides: list[str], error: Exception) -> str:
    """Hydra's complaint as one sentence that says what to do."""
    groups = [folder.name for folder in CONFIGS.iterdir() if folder.is_dir()]
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if not equals and not override.startswith("~"):
            return f"{override!r} is not of the form key=value; see `bdia-exp {command} --help`"
        if key in groups and value not in options(key):
            return f"{key}={value} does not exist{nearest(value, options(key))}"
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"there is no key {match[1]!r}{nearest(match[1], _keys(command, overrides))}"
    if match := re.search(r"You must specify '([^']+)'", text):
        return f"give {match[1]}=: one of {', '.join(options(match[1]))}"
    return re.sub(r"\s+", " ", text).strip()


def _keys(command: str, overrides: list[str]) -> list[str]:
    """Every dotted key of the command's configuration under the group choices that are valid."""
    chosen = [o for o in overrides if o.partition("=")[2] in options(o.partition("=")[0])]
    try:
        config, _ = _composed(command, chosen)
    except (HydraException, OmegaConfBaseException):
        return []

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            yield prefix + str(key)
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return [key for key in walk(OmegaConf.to_container(config), "") if not key.endswith("_")]


def expand(command: str, words: tuple[str, ...], multirun: bool) -> list[list[str]]:
    """The words after a command as lists of overrides: one, or with --multirun one a combination.

    Without --multirun a comma means nothing special: `seeds=0-9,20` is one text.
    """
    if POSITIONAL.get(command) == "images":
        words = tuple(re.sub(r"^image=", "images=", word) for word in words)
    bare = list(takewhile(lambda word: "=" not in word, words))
    if bare and command in POSITIONAL:
        words = (f"{POSITIONAL[command]}={','.join(bare)}", *words[len(bare) :])
    # Of other keys the last one counts, as in Hydra; of these the first would be lost unseen.
    for key in ("overrides", "settings"):
        if sum(word.startswith(f"{key}=") for word in words) > 1:
            raise UserError(f"{key}= is given twice: give all of them in one text")
    try:
        if not multirun:
            return [[_quoted(word) for word in words]]
        parsed = OverridesParser.create().parse_overrides(list(words))
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [str(o.input_line)]
            for o in parsed
        ]
    except HydraException as error:
        raise UserError(_explain(command, list(words), error)) from None
    return [list(combination) for combination in product(*choices)]


def _quoted(word: str) -> str:
    """A text, a path or a list with commas, put in quotes so that Hydra takes it as it is."""
    key, equals, value = word.partition("=")
    plain = re.fullmatch(r"[\w.+-]*", value) or value[:1] in "[{$" or _in_quotes(value)
    if key in TEXTS:
        plain = value == "null" or (key == "to" and value.isdecimal())
    return word if not equals or plain else f"{key}={quoted(value)}"


def _in_quotes(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]


# -- calls ---------------------------------------------------------------------------------------


def bound(function: Any, name: str) -> Any:
    """Checks the arguments already given to a partial, and to those within, before anything runs.

    What is not a partial is returned as it is, and so is the function of one without arguments.
    Raises UserError for a name that the function does not have or a value of another type.
    """
    if not isinstance(function, partial):
        return function
    given = {key: bound(value, f"{name}.{key}") for key, value in function.keywords.items()}
    check(function.func, given, f"{name}.")
    return partial(function.func, **given) if given else function.func


def check(function: Callable, arguments: dict[str, Any], prefix: str = "") -> None:
    """Compares arguments with a signature: names, and the types of plain values."""
    known = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    for key, value in arguments.items():
        if key not in known:
            raise UserError(f"there is no key {prefix + key!r}{nearest(key, known)}")
        hint = hints.get(key)
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = [kind for kind in allowed if kind in (int, float, str, bool, type(None))]
        if len(plain) < len(allowed):
            continue
        accepted = {*plain, *([int] if float in plain else [])}
        if type(value) not in accepted:
            kinds = " or ".join("null" if k is type(None) else k.__name__ for k in plain)
            raise UserError(f"{(prefix + key).rstrip('_')}={value} must be {kinds}")


def arguments(command: str, overrides: list[str], *, described: bool = False) -> dict[str, Any]:
    """The arguments of `run.command`: constructors built, everything checked."""
    config, choices = composed(command, overrides)
    try:
        plain = typing.cast(
            dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        )
        built: dict[str, Any] = {}
        for key, value in plain.items():
            if isinstance(value, dict) and "_target_" in value:
                built[key] = bound(instantiate(config[key]), key)
            else:
                built[f"{key}_" if keyword.iskeyword(key) else key] = value
    except MissingMandatoryValue as error:
        key = error.full_key or "the missing key"
        raise UserError(f"give {key}=; see `bdia-exp {command} --help`") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the configuration cannot be built: {error}") from None
    if described:
        built |= {"config": plain, "choices": choices}
    return built


def verb(command: str) -> Callable:
    """The function of a command: of its name, in the module that has it."""
    from bdia_exp import editing, run, studies

    modules = (run, editing, studies)
    return next(getattr(module, command) for module in modules if hasattr(module, command))


def call(command: str, overrides: list[str]) -> Any:
    """Composes, builds, checks and runs; what the verb returns."""
    function = verb(command)
    asked = inspect.signature(function).parameters
    extra: dict[str, Any] = {}
    if "compose" in asked:
        extra["compose"] = partial(_arguments_of, COMPOSING.get(command, "sample"))
    if "listing" in asked:
        extra["listing"] = _models()
    return function(**_arguments_of(command, overrides), **extra)


def _arguments_of(command: str, overrides: list[str]) -> dict[str, Any]:
    """What `call` would call a command's function with."""
    function = verb(command)
    asked = inspect.signature(function).parameters
    given = arguments(command, overrides, described="config" in asked)
    named = {word.partition("=")[0].lstrip("+~") for word in overrides}
    for key in BROUGHT - asked.keys() - (named - {"features"}):
        given.pop(key, None)
    check(function, given)
    return given


def _models() -> dict[str, dict[str, Any]]:
    """Each model's first comment and files (None where the user must give the checkpoint)."""
    listing = {}
    for name in options("model"):
        file = CONFIGS / "model" / f"{name}.yaml"
        node = OmegaConf.load(file)
        assert isinstance(node, DictConfig)
        missing = OmegaConf.is_missing(node.model, "checkpoint")
        listing[name] = {
            "about": about(file),
            "checkpoint": None if missing else node.model.checkpoint,
            "reference": node.get("reference"),
        }
    return listing


# -- commands ------------------------------------------------------------------------------------


class Command(click.Command):
    """A command whose help ends with its configuration and the choices in it."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        text = (CONFIGS / f"{self.name}.yaml").read_text()
        groups = re.findall(r"^  - (\w+): ", text, re.MULTILINE)
        with formatter.section("Keys and their defaults"):
            for line in text.splitlines()[1:]:
                if line and not line.startswith(("defaults:", "  - ")):
                    formatter.write(f"  {line}\n")
        for group in groups:
            with formatter.section(f"{group}="):
                rows = [(n, about(CONFIGS / group / f"{n}.yaml")) for n in options(group)]
                formatter.write_dl(rows)


class Group(click.Group):
    """Turns what a user can mend into one sentence and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            from bdia_exp import dist

            if not dist.first_to_tell():
                sys.exit(1)
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            from bdia_exp import dist

            if dist.first_to_tell():
                click.echo("\nstopped; the same command goes on where it was", err=True)
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise click.ClickException(
                    "no room left on the disk: free some, run again"
                ) from None
            if error.errno in (errno.EACCES, errno.EROFS):
                raise click.ClickException(f"no permission for {error.filename}") from None
            raise
        except RuntimeError as error:
            if "out of memory" in str(error) or "can't allocate memory" in str(error):
                raise click.ClickException("out of memory: choose a smaller batch=") from None
            raise


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bdia-exp")
def main() -> None:
    """Run experiments with diffusion samplers: BDIA, its companions and what they improve on.

    Everything after a command is key=value, as in Hydra: `bdia-exp sample sampler=bdia_edm
    nfe=35 sampler.gamma=0.5`. `bdia-exp COMMAND --help` lists the keys.
    """


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    command = ctx.command.name or ""
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={n}" for n in options(key) if n.startswith(value)]
    try:
        keys = _keys(command, [])
    except (UserError, OSError):
        keys = []
    groups = re.findall(r"^  - (\w+): ", (CONFIGS / f"{command}.yaml").read_text(), re.MULTILINE)
    return [f"{k}=" for k in sorted({*keys, *groups}) if k.startswith(incomplete)]


def _launch(processes: str, words: list[str]) -> int:
    import torch

    from bdia_exp import dist

    if dist.in_torchrun():
        raise UserError("-p starts processes itself: leave it out under torchrun")
    count = torch.cuda.device_count() if processes == "gpu" else processes
    if count == 0:
        raise UserError("-p gpu: PyTorch sees no GPU here; give a number of processes")
    if not str(count).isdigit() or int(count) < 1:
        raise UserError(f"-p {processes}: give a number of processes, or gpu")
    return dist.launch(int(count), words)


def _add(name: str, short: str, help: str, example: str) -> None:
    text = f"{help}\n\n\b\nExample:\n  bdia-exp {name} {example}"

    @main.command(name, cls=Command, help=text, short_help=short)
    @click.option("-m", "--multirun", is_flag=True, help="Run every combination of a=1,2 b=x,y.")
    @click.option(
        "--cfg", type=click.Choice(["job"]), help="Print the configuration and do not run."
    )
    @click.option("-p", "--processes", metavar="N|gpu", help="Run in N processes, or in one a GPU.")
    @click.argument("overrides", nargs=-1, shell_complete=_complete)
    def command(
        multirun: bool, cfg: str | None, processes: str | None, overrides: tuple[str, ...]
    ) -> None:
        if processes and name not in PARALLEL:
            raise UserError(f"-p is for {', '.join(PARALLEL)}, not for {name}")
        if processes and not cfg:
            flags = ["-m"] if multirun else []
            sys.exit(_launch(processes, [name, *flags, *overrides]))
        for one in expand(name, overrides, multirun):
            if cfg:
                click.echo(OmegaConf.to_yaml(composed(name, one)[0]))
                continue
            if multirun and os.environ.get("RANK", "0") == "0":
                click.echo(f"# {' '.join(one)}")
            call(name, one)
        from bdia_exp import dist

        dist.stop()


_add(
    "sample",
    "Generate images.",
    "Generate images with a model, a sampler and a number of network evaluations. Run again "
    "after an interruption, it goes on where it was.",
    "sampler=bdia_edm nfe=35 images=1000 score=true",
)
_add(
    "evaluate",
    "FID of a set of images.",
    "FID of a run, folder, zip or npz of images against reference statistics or other images.",
    "runs/mine reference=bundled:fashion_reference.npz",
)
_add(
    "reference",
    "Statistics to score against.",
    "Mean and covariance of the features of a folder, zip or npz of images: what FID compares "
    "with.",
    "data/cifar10/train.npz features=inception out=cifar10-train.npz",
)
_add(
    "reproduce",
    "Run the cells of a table and draw it.",
    "Run the missing cells of an experiment's tables and draw the tables.",
    "demo out=runs/demo",
)
_add(
    "table",
    "Draw a table again from its records.",
    "Draw an experiment's tables, plot and sheet again from the records that are there.",
    "demo out=runs/demo",
)
_add(
    "fetch",
    "Download what experiments need.",
    "Download the checkpoints and reference statistics of models, the feature network "
    "(inception), a data set (cifar10) or single files into the cache. BDIA_EXP_CACHE, "
    "BDIA_EXP_MIRROR and BDIA_EXP_OFFLINE in the environment say where to, where from, and not "
    "to; docs/files.md explains.",
    "edm_cifar10 inception",
)
_add(
    "models",
    "List the models.",
    "List the models that can be chosen with model=NAME, and whether their checkpoint is here.",
    "",
)
_add(
    "invert",
    "Images to noise.",
    "Invert images to noise, exactly with sampler=bdia_ddim, edict or cbdia, and keep what the way "
    "back needs.",
    "runs/mine sampler.gamma=0.95 nfe=40",
)
_add(
    "roundtrip",
    "Images to noise and back, with the errors.",
    "Invert images and regenerate them: the error in states and pixels, and how much errors are "
    "amplified, predicted and measured.",
    "runs/mine sampler=edict nfe=40 limit=16",
)
_add(
    "edit",
    "Images to noise, and back as something else.",
    "Invert images under their own class or prompt and regenerate them under another.",
    "photo.png model=sd15 prompt='a cat' to='a dog' nfe=50 strength=0.8 sampler.gamma=0.96",
)
_add(
    "edits",
    "The same edit by several methods, on a sheet.",
    "Edit the same images with several methods and draw them on one sheet, with the errors of "
    "their reconstructions.",
    "photo.png prompt='a cat' to='a dog' settings='model=sd15'",
)
_add(
    "convergence",
    "Error and order of samplers.",
    "Measure the error of samplers against a high-accuracy solution, on exact densities and on "
    "models, and the order that it falls with.",
    "samplers=ddim,bdia_ddim,edm problems=gaussian steps=16,32,64",
)
_add(
    "exactness",
    "Error of inversion over γ and N.",
    "Measure what inversion gives back after a round trip, for every γ, number of steps and way to "
    "hold a state: float64, float32 and fixed point.",
    "gammas=1,0.92,0.5 problems=mixture steps=10,40",
)
_add(
    "sweep",
    "FID over γ, NFE and samplers.",
    "Run the missing cells of a sweep over γ, NFE and samplers, and draw a heat map and curves of "
    "FID.",
    "samplers=bdia_edm gammas=0,0.5,1 nfes=9,19 images=500",
)
