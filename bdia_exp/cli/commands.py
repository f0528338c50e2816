"""The verbs as click's commands. An error that users can fix gives one sentence and exit 1.

Help comes only from the configurations. A verb's file and PyTorch are imported to run it.
"""

import errno
import os
import re
import signal
import sys
from typing import Any

import click
from omegaconf import OmegaConf

from bdia_exp import stopping
from bdia_exp.cli import configs
from bdia_exp.cli.files import CONFIGS, about, commands, groups_of, help_of, options, text_of
from bdia_exp.cli.streams import write_any_text
from bdia_exp.cli.words import expand
from bdia_exp.errors import UserError, brief
from bdia_exp.jobs.frozen import frozen


class Command(click.Command):
    """A command whose help lists its keys and the choices of each group."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        assert self.name
        with formatter.section("Keys and their defaults"):
            for line in text_of(self.name).splitlines():
                if line and not line.startswith(("defaults:", "  - ")):
                    formatter.write(f"  {line}\n")
        for group in groups_of(self.name):
            with formatter.section(f"{group}="):
                rows = [(n, about(CONFIGS / group / f"{n}.yaml")) for n in options(group)]
                formatter.write_dl(rows)


class Group(click.Group):
    """Turns errors that users can fix into one sentence and exit status 1."""

    def main(self, *args: Any, **more: Any) -> Any:
        write_any_text()
        stopping.listen()
        return super().main(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if not stopping.first_to_tell():
                sys.exit(1)
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signal.SIGINT)
            stopping.tell(number)
            sys.exit(128 + number)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise click.ClickException(
                    "no room left on the disk: free some and run again"
                ) from None
            if error.errno in (errno.EACCES, errno.EROFS):
                raise click.ClickException(f"no permission for {error.filename}") from None
            what = f"{brief(error.filename)}: " if error.filename else ""
            raise click.ClickException(f"{what}{error.strerror or error}") from None
        except RuntimeError as error:
            if "out of memory" in str(error) or "can't allocate memory" in str(error):
                raise click.ClickException("out of memory: choose a smaller batch=") from None
            raise


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bdia-exp")
def main() -> None:
    """Run experiments with diffusion samplers: BDIA, its variants, and the methods they extend.

    All arguments of a command are key=value, as in Hydra: `bdia-exp sample sampler=bdia_edm
    nfe=35 sampler.gamma=0.5`. `bdia-exp COMMAND --help` lists the keys.
    """


PARALLEL = ("evaluate", "reference", "reproduce", "sample", "sweep")
"""The verbs whose work several processes can share (-p)."""
FREEZES = ("sample", "table")
"""The verbs whose settings `submit` writes to files (--config)."""


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    command = ctx.command.name or ""
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={n}" for n in options(key) if n.startswith(value)]
    try:
        keys = configs.keys(command, [])
    except (UserError, OSError):
        keys = []
    found = sorted({*keys, *groups_of(command)})
    return [f"{key}=" for key in found if key.startswith(incomplete)]


def _launch(processes: str, words: list[str], nodes: int | None, meet: str | None) -> int:
    import torch

    from bdia_exp import dist
    from bdia_exp.dist.launcher import launch

    if dist.in_torchrun():
        raise UserError("-p starts processes itself: leave it out under torchrun")
    count = torch.cuda.device_count() if processes == "gpu" else processes
    if count == 0:
        raise UserError("-p gpu: PyTorch sees no GPU here; give a number of processes")
    if not re.fullmatch(r"[1-9]\d{0,2}", str(count), re.ASCII):
        raise UserError(f"-p {brief(processes)}: give a number of processes, or gpu")
    if (nodes or 1) > 1 and not re.fullmatch(r".+:\d+", meet or "", re.ASCII):
        raise UserError("--nodes needs --meet HOST:PORT, the same on every node")
    return launch(int(count), words, nodes or 1, meet)


def _add(name: str) -> None:
    short, *rest = help_of(CONFIGS / f"{name}.yaml")
    text = "\n".join(rest).strip().replace("Example: ", "\b\nExample:\n  ")

    def option(*flags: str, only: tuple[str, ...] = PARALLEL, **more: Any) -> Any:
        return click.option(*flags, **more, hidden=name not in only)

    @main.command(name, cls=Command, help=text, short_help=short)
    @click.option("-m", "--multirun", is_flag=True, help="Run every combination of a=1,2 b=x,y.")
    @click.option(
        "--cfg", type=click.Choice(["job"]), help="Print the configuration and do not run."
    )
    @option("--config", metavar="FILE", help="Use settings that `submit` wrote.", only=FREEZES)
    @option("-p", "--processes", metavar="N|gpu", help="Run in N processes, or one per GPU.")
    @option("--nodes", type=click.IntRange(1), metavar="N", help="With -p on N machines.")
    @option("--meet", metavar="HOST:PORT", help="With --nodes: where the machines meet.")
    @click.argument("overrides", nargs=-1, shell_complete=_complete)
    def command(
        multirun: bool,
        cfg: str | None,
        config: str | None,
        processes: str | None,
        nodes: int | None,
        meet: str | None,
        overrides: tuple[str, ...],
        dry_run: bool = False,
    ) -> None:
        if dry_run:
            overrides = (*overrides, "dry_run=true")
        if processes and name not in PARALLEL:
            raise UserError(f"-p is for {', '.join(PARALLEL)}, not for {name}")
        if (nodes or meet) and not processes:
            raise UserError("--nodes and --meet go with -p, the number of processes on each node")
        if processes and not cfg:
            flags = [*(["-m"] if multirun else []), *(["--config", config] if config else [])]
            sys.exit(_launch(processes, [name, *flags, *overrides], nodes, meet))
        for one in expand(name, overrides, multirun):
            if cfg:
                click.echo(_shown(name, one, config))
                continue
            if multirun and os.environ.get("RANK", "0") == "0":
                click.echo(f"# {' '.join(one)}")
            configs.call(name, one, config)
        from bdia_exp import dist

        dist.stop()

    if "\ndry_run:" in text_of(name):
        flag = click.Option(["--dry-run"], is_flag=True, help="The same as dry_run=true.")
        command.params.append(flag)


def _shown(name: str, overrides: list[str], file: str | None) -> str:
    if file is None:
        return OmegaConf.to_yaml(configs.composed(name, overrides)[0])
    return frozen(name, configs.settings(name, overrides, file))


for _name in commands():
    _add(_name)
