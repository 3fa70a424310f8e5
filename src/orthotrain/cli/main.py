"""Entry point: parse, dispatch, and turn what a user can get wrong into one clear line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import assert_never

from jsonargparse import ArgumentError

from orthotrain.cli.parser import parse
from orthotrain.errors import OrthotrainError

ERROR_EXIT = 2
# What a shell reports for a process that ended by Ctrl-C.
INTERRUPTED_EXIT = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a user's error, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except (OrthotrainError, ArgumentError) as error:
        message = error.message if isinstance(error, ArgumentError) else str(error)
        print(f"orthotrain: error: {' '.join(str(message).split())}", file=sys.stderr)
        return ERROR_EXIT
    except KeyboardInterrupt:
        print(
            "\northotrain: stopped; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED_EXIT


def _dispatch(arguments: list[str]) -> int:
    command = parse(arguments)
    match command.name:
        case "train":
            from orthotrain.cli.train import run_train

            return run_train(command)
        case "tune":
            from orthotrain.cli.tune import run_tune

            return run_tune(command)
        case "report":
            from orthotrain.cli.report import run_report

            return run_report(command)
        case "inspect":
            from orthotrain.cli.inspect import run_inspect

            return run_inspect(command)
        case "compress":
            from orthotrain.cli.compress import run_compress

            return run_compress(command)
        case "bench":
            from orthotrain.cli.bench import run_bench

            return run_bench(command)
        case _:
            assert_never(command.name)
