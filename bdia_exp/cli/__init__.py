"""The command line: click commands over Hydra configurations. The only importer of both."""

from bdia_exp.cli.commands import main
from bdia_exp.cli.configs import composed

__all__ = ["composed", "main"]
