"""Entry point: parse, dispatch, and turn what a user can get wrong into one clear line.

The commands that need the library alone are parsed here, with the standard library alone.
"""

from __future__ import annotations

import sys
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from orthotrain._version import __version__
from orthotrain.cli.command import Command, Parser
from orthotrain.cli.launched import own_name
from orthotrain.cli.output import drop_output, print_what_it_can, steady_output
from orthotrain.errors import ConfigError, OrthotrainError
from orthotrain.files import remedy

if TYPE_CHECKING:
    from argparse import _SubParsersAction

ERROR_EXIT: Final = 2
# What a shell reports for a process that ended by Ctrl-C.
INTERRUPTED_EXIT: Final = 130
# The packages of the extra "lab", by the name under which they are imported.
LABORATORY: Final = (
    "docstring_parser",
    "jinja2",
    "jsonargparse",
    "matplotlib",
    "PIL",
    "rich",
    "scipy",
    "sklearn",
    "yaml",
)

_RUNS: Final = {
    "train": "train the variants of a recipe side by side and write a report",
    "tune": "search settings of each variant on the validation part",
}
# orthotrain.lowrank.cut.KINDS, which would load torch.
_KINDS: Final = ("lstm", "gru", "rnn", "embedding", "transposed")
_EXAMPLES: Final = """\
examples:
  orthotrain train                                  the default recipe, then its report
  orthotrain train cifar10-minivit --data.dir DIR   another one, with local data
  orthotrain train --optim.epochs 30 --seeds 0 1 --run-dir runs/short
  orthotrain report runs/a runs/b                   one page for several runs
  orthotrain inspect model.safetensors              what could be saved of any model file
  orthotrain compress model.ckpt --stored-budget .5 --out small.safetensors

inspect and compress need nothing else; the others need: pip install "orthotrain[lab]"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0; 2 for a user's error; 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_what_it_can()
    try:
        return _dispatch(arguments)
    except (OrthotrainError, ArgumentError) as error:
        return _failed(error.message if isinstance(error, ArgumentError) else str(error))
    except BrokenPipeError:
        drop_output(sys.stdout)  # the reader, such as head, has closed it
        return ERROR_EXIT
    except OSError as error:  # of the files that were named, or of the disk
        return _failed(f"{error}; {remedy(error)}")
    except KeyboardInterrupt as stop:
        print(
            f"\n{own_name()}: stopped; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        # A training that was stopped by a signal says by which.
        return 128 + stop.args[0] if stop.args else INTERRUPTED_EXIT


def _failed(message: str) -> int:
    print(f"{own_name()}: error: {' '.join(message.split())}", file=sys.stderr)
    return ERROR_EXIT


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else None
    command: Command
    if name in _RUNS:
        _need_laboratory(name)
        from orthotrain.cli.parser import parse_run

        command = parse_run(name, arguments[1:])
    else:
        given = build_parser().parse_args(arguments)
        name = given.command
        if name in ("report", "bench"):
            _need_laboratory(name)
        command = Command(given, " ".join(["orthotrain", *arguments]))
    run = getattr(import_module(f"orthotrain.cli.{name}"), f"run_{name}")
    with steady_output() if name in _RUNS else nullcontext():
        return int(run(command))


def _need_laboratory(name: str) -> None:
    missing = [module for module in LABORATORY if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"{name} needs packages that are not installed ({', '.join(missing)}); install them "
            'with: pip install "orthotrain[lab]"'
        )


def build_parser() -> Parser:
    """The parser of all commands but ``train`` and ``tune``, which it only lists."""
    parser = Parser(
        "orthotrain",
        description="Orthogonality as a training tool for PyTorch.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    commands.required = True
    for name, text in _RUNS.items():
        commands.add_parser(name, help=text)

    report = commands.add_parser("report", help="write one page about one or several runs")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, or FILE.jsonl of a JsonlWriter"
    )
    report.add_argument(
        "-o", "--output", help="folder of the report (default: report in the run folder)"
    )
    _add_files(commands)
    bench = commands.add_parser("bench", help="run the scripts in benchmarks/")
    bench.add_argument("name", nargs="?", metavar="NAME", help="one script (default: all)")
    return parser


def _add_files(commands: _SubParsersAction[Parser]) -> None:
    """The commands that read a file of weights."""
    inspect = commands.add_parser(
        "inspect", help="show layers, ranks and sizes of a model file, and what could be saved"
    )
    _add_reading(inspect)
    inspect.add_argument("--json", metavar="FILE", help="also write all numbers there")
    inspect.add_argument("--picture", metavar="FILE.png", help="also draw them there")
    compress = commands.add_parser("compress", help="make a model file smaller: low-rank weights")
    _add_reading(compress)
    rule = compress.add_mutually_exclusive_group(required=True)
    rule.add_argument(
        "--rank",
        metavar="RULE=SHARE",
        help="rank rule, such as rank_rtol=0.1, energy=0.9 or stored_budget=0.5",
    )
    rule.add_argument(
        "--stored-budget", type=float, metavar="SHARE", help="share of the numbers to store"
    )
    compress.add_argument(
        "-o", "--out", dest="output", required=True, metavar="FILE",
        help="safetensors file, see orthotrain.load",
    )  # fmt: skip
    compress.add_argument(
        "--dense",
        action="store_true",
        help="keep every name and shape, for programs without orthotrain; as large as before",
    )
    for name, text in (("only", "layers to cut"), ("skip", "layers that stay")):
        compress.add_argument(
            f"--{name}", nargs="+", default=(), metavar="PATTERN", help=f"names of {text}"
        )


def _add_reading(parser: ArgumentParser) -> None:
    """The file, and how it is read."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="safetensors, a file of torch.save, a folder of Transformers, a run's checkpoint.pt",
    )
    parser.add_argument(
        "--key", metavar="NAME", help="entry that holds the weights, such as state_dict_ema"
    )
    parser.add_argument(
        "--also", nargs="+", default=(), metavar="KIND", choices=_KINDS,
        help=f"kinds that are cut on request: {', '.join(_KINDS)}",
    )  # fmt: skip
    parser.add_argument(
        "--max-aspect", type=float, default=10.0, metavar="RATIO",
        help="weights with one side this many times the other stay (default: 10)",
    )  # fmt: skip
