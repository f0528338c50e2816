"""The command line: click commands over Hydra configurations. The only importer of both."""

from bdia_exp.cli.commands import main

__all__ = ["main"]
