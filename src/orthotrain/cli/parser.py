"""The options of every command. The recipe decides the defaults, so it is looked up first."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from orthotrain._version import __version__
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import (
    DEFAULT_RECIPE,
    is_recipe,
    recipe_config,
    recipe_names,
)
from orthotrain.lab.run.config import RunConfig, Scale
from orthotrain.lab.run.record import RunFolder

CommandName = Literal["train", "tune", "report", "inspect", "compress", "bench"]
T = TypeVar("T")

_EXAMPLES: Final = """\
examples:
  orthotrain train                                  the default recipe, then its report
  orthotrain train cifar10-minivit --data.dir DIR   another one, with local data
  orthotrain train --optim.epochs 30 --seeds 0 1 --run-dir runs/short
  orthotrain report runs/a runs/b                   one page for several runs
"""
# Set by name of variant or by the grid, not by a flag of their own.
_LISTS: Final = {"variants", "seeds"}


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    name: CommandName
    arguments: Namespace
    line: str

    def value(self, name: str, kind: type[T]) -> T:
        """The value of an option that cannot be missing."""
        value = self.arguments[name]
        if not isinstance(value, kind):
            raise ConfigError(f"--{name.replace('_', '-')}: got {value!r}, need {kind.__name__}")
        return value

    def config(self, **fixed: Any) -> RunConfig:
        """The run that the options describe."""
        given = self.arguments.as_dict()
        return _run_like(recipe_config(given["recipe"], given["scale"]), {**given, **fixed})


def _run_like(defaults: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """A run of the family of ``defaults`` with the settings in ``given``; others are ignored."""
    names = [f.name for f in fields(defaults)]
    return type(defaults)(
        **{name: _built(getattr(defaults, name), given.get(name)) for name in names}
    )


def _built(default: object, given: object) -> Any:
    """``given`` as a value of the kind of ``default``, or that where there is no such option."""
    return default if given is None else _like(default, given)


def _like(default: object, given: object) -> Any:
    """What was parsed or read, with the dataclasses and tuples that ``default`` has."""
    if isinstance(given, dict) and hasattr(type(default), "__dataclass_fields__"):
        kept = {name: _like(getattr(default, name, None), v) for name, v in given.items()}
        return type(default)(**kept)
    return tuple(given) if isinstance(default, tuple) and isinstance(given, list) else given


def parse(arguments: list[str]) -> Command:
    """Understand a command line.

    Raises:
        ArgumentError: An unknown option, or a value of a wrong kind.
        ConfigError: A recipe, scale or configuration file that cannot be used.
    """
    default = recipe_config(_named_recipe(arguments), "cpu")
    first = build_parser(default).parse_args(arguments)
    name = first.subcommand
    if name is None:
        raise ArgumentError(None, "no command given; see orthotrain --help")
    chosen = first[name]
    if name in ("train", "tune"):
        base = _base(chosen)
        if base != default:
            chosen = build_parser(base).parse_args(arguments)[name]
            chosen["recipe"], chosen["scale"] = base.recipe, base.scale
    line = " ".join(["orthotrain", *arguments])
    return Command(name=name, arguments=chosen, line=line)


def _named_recipe(arguments: list[str]) -> str:
    """The recipe a command line is about, as far as that shows before its options are known.

    Families of recipes have options of their own, so the recipe is looked for first: by name
    anywhere, in a configuration file, or in the folder of a run that goes on.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    # A known name goes first: the value of another option may look like module:NAME.
    if found := sorted(filter(is_recipe, words), key=lambda word: ":" in word):
        return found[0]
    files = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    if "--resume" in words:
        places = [after for word, after in pairwise(words) if word == "--run-dir"]
        files += [RunFolder(Path(place)).config for place in places]
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser says what is wrong with it
        if isinstance(content, dict) and is_recipe(str(content.get("recipe"))):
            return str(content["recipe"])
    return DEFAULT_RECIPE


def _base(chosen: Namespace) -> RunConfig:
    """The settings that stand where no option says otherwise."""
    if not chosen.get("resume"):
        return recipe_config(chosen.recipe_name or chosen.recipe, chosen.scale)
    if chosen.run_dir is None:
        raise ConfigError("--resume needs the folder to go on in; add --run-dir DIR")
    path = RunFolder(Path(chosen.run_dir)).config
    if not path.is_file():
        raise ConfigError(f"--resume: {path} does not exist; need the folder of an earlier run")
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults = recipe_config(saved["recipe"], saved["scale"])
        if unknown := set(saved) - {f.name for f in fields(defaults)}:
            raise KeyError(", ".join(sorted(unknown)))
        return _run_like(defaults, saved)
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--resume: {path} is no configuration of this version ({error}); start a new run"
        ) from error


def build_parser(base: RunConfig) -> ArgumentParser:
    """The parser whose defaults are those of ``base``."""
    parser = ArgumentParser(
        prog="orthotrain",
        description="Orthogonality as a training tool for PyTorch.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        exit_on_error=False,
        version=__version__,
    )
    commands = parser.add_subcommands(required=False, title="commands", dest="subcommand")
    for name, (help_text, add) in _COMMANDS.items():
        sub = ArgumentParser(prog=f"orthotrain {name}", description=help_text, exit_on_error=False)
        add(sub, base)
        commands.add_subcommand(name, sub, help=help_text)
    return parser


def _add_run(parser: ArgumentParser, base: RunConfig) -> None:
    parser.add_argument(
        "recipe_name",
        nargs="?",
        metavar="RECIPE",
        help=f"one of {', '.join(recipe_names())}, or your own as module:NAME "
        f"(default: {DEFAULT_RECIPE})",
    )
    # A positional cannot come out of a configuration file, an option can.
    parser.add_argument("--recipe", default=base.recipe, help="the same, for use in a file")
    parser.add_argument(
        "--scale", choices=get_args(Scale), default=base.scale, help="size of the run"
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument(
        "--jobs", type=int, default=None, help="trainings at a time, 1 or 2 (default: by cores)"
    )


def _add_settings(parser: ArgumentParser, base: RunConfig, *, without: set[str]) -> None:
    skip = {"recipe", "scale", *_LISTS, *without}
    parser.add_class_arguments(type(base), None, skip=skip, sub_configs=False)
    parser.set_defaults(_flat({k: v for k, v in asdict(base).items() if k not in skip}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _add_train(parser: ArgumentParser, base: RunConfig) -> None:
    _add_run(parser, base)
    parser.add_argument(
        "--run-dir", default=None, help="folder of the run (default: runs/RECIPE-SCALE)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="take all settings from the run folder; the same command again goes on, too",
    )
    parser.add_argument("--report", type=bool, default=True, help="write the report at the end")
    parser.add_argument("--variants", nargs="+", default=list(base.variants), help="what to train")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(base.seeds), help="seeds of every variant"
    )
    _add_settings(parser, base, without=set())


def _add_tune(parser: ArgumentParser, base: RunConfig) -> None:
    _add_run(parser, base)
    parser.add_argument(
        "--run-dir", default=None, help="folder of the search (default: runs/RECIPE-SCALE-tune)"
    )
    parser.add_argument(
        "--output", default=None, help="where the settings go (default: tuned.json in the folder)"
    )
    _add_settings(parser, base, without={"paper", "tuned"} & {f.name for f in fields(base)})


def _add_report(parser: ArgumentParser, base: RunConfig) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument(
        "-o", "--output", default=None, help="folder of the report (default: report in the run)"
    )


def _add_inspect(parser: ArgumentParser, base: RunConfig) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt or *.safetensors")


def _add_compress(parser: ArgumentParser, base: RunConfig) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a run folder")
    parser.add_argument(
        "--rank-rtol",
        type=float,
        required=True,
        help="drop singular values below this share of the largest, in [0, 1)",
    )
    parser.add_argument(
        "-o", "--output", required=True, help="safetensors file, see orthotrain.load"
    )


def _add_bench(parser: ArgumentParser, base: RunConfig) -> None:
    parser.add_argument(
        "name", nargs="?", default=None, metavar="NAME", help="one script (default: all)"
    )


_COMMANDS: Final[dict[CommandName, tuple[str, Any]]] = {
    "train": ("train the variants of a recipe side by side and write a report", _add_train),
    "tune": ("choose low-rank settings on the validation part", _add_tune),
    "report": ("write one page about one or several runs", _add_report),
    "inspect": ("show layers, ranks, sizes and condition numbers of a checkpoint", _add_inspect),
    "compress": ("truncate a trained checkpoint to low rank", _add_compress),
    "bench": ("run the scripts in benchmarks/", _add_bench),
}
