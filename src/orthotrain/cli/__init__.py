"""The command line. Nothing heavy is imported before the arguments are understood."""

from orthotrain.cli.main import main

__all__ = ["main"]
