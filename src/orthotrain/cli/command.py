"""What a command line says, after it is understood."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from orthotrain.errors import ConfigError

if TYPE_CHECKING:
    from orthotrain.lab.run.config import RunConfig


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
        arguments: Values of the options of the command itself.
        line: The whole line, as it goes into the record of a run.
    """

    arguments: argparse.Namespace
    line: str


@dataclass(frozen=True)
class RunCommand(Command):
    """A command line that describes a run.

    Attributes:
        config: The run: its recipe, changed by configuration files and options.
    """

    config: RunConfig


class Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions; nothing is printed and nothing exits."""

    def error(self, message: str) -> NoReturn:
        """Raise the message.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(message)
