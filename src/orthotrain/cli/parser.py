"""The options of ``train`` and ``tune``. The recipe decides the defaults, so it is found first."""

from __future__ import annotations

from argparse import ArgumentError, Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

from jsonargparse import ArgumentParser
from jsonargparse import Namespace as Settings

from orthotrain.cli.command import Parser, RunCommand
from orthotrain.cli.settings import add_settings, built, given_names
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import (
    DEFAULT_RECIPE,
    find_recipe,
    recipe_config,
    recipe_names,
)
from orthotrain.lab.run.config import RunConfig, Scale
from orthotrain.lab.run.record import RunFolder, read_settings
from orthotrain.lab.run.storage import without_password

# Objectives by name, see orthotrain.lab.run.space.
AIMS: Final = ("loss", "stored", "compute")
# Settings with an option that is made by hand.
_APART: Final = {"recipe", "scale", "variants", "seeds"}


def parse_run(name: str, arguments: list[str]) -> RunCommand:
    """Understand what stands behind ``orthotrain train`` or ``orthotrain tune``.

    Raises:
        ArgumentError: An unknown option, or a value of a wrong type.
        ConfigError: A recipe, scale or configuration file that cannot be used.
    """
    first = _look_ahead(arguments)
    file = _file(first)
    content = {} if file is None else read_settings(file)
    base = _base(first, content)
    if name == "tune":
        _require_undecided(content, file, decided=_decided(base))
    parser = run_parser(name, base, given_names(content, vars(first)))
    words = ["--config", str(file), *arguments] if first.resume else arguments
    if first.resume:
        try:
            _parsed(parser, words[:2])
        except ArgumentError as error:
            raise ConfigError(
                f"--resume: {file} is no configuration of this version ({error.message}); correct "
                "that line as CHANGELOG.md says, or start a new run"
            ) from error
    given = _parsed(parser, words)
    given.recipe, given.scale = base.recipe, base.scale
    line = without_password(" ".join(["orthotrain", name, *arguments]))
    config = built(type(base), base, given)
    own = _merged(
        {} if first.resume else base.own,
        content.get("own", {}),
        config.own if "own" in vars(first) else {},
    )
    return RunCommand(given, line, replace(config, own=own))


def _merged(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each variant's own settings, later ones over earlier ones; empty ones take all back."""
    own: dict[str, Mapping[str, Any]] = {}
    for layer in layers:
        for name, more in layer.items():
            own[name] = {**own.get(name, {}), **more} if more else {}
    return own


def _parsed(parser: ArgumentParser, words: Sequence[str]) -> Settings:
    try:
        return parser.parse_args(words)
    except RuntimeError as error:  # jsonargparse goes over a mapping as over a list, and changes it
        raise ConfigError(
            "a setting that is a list, such as variants, was given as a mapping; write it as "
            f"[a, b], in the file or after its option ({error})"
        ) from error


def run_parser(name: str, base: RunConfig, given: dict[str, Any]) -> ArgumentParser:
    """The parser of a command.

    Args:
        name: The command.
        base: The run with the defaults.
        given: Names of the settings that are given; they choose between several classes.
    """
    parser = ArgumentParser(prog=f"orthotrain {name}", exit_on_error=False, allow_abbrev=False)
    add = parser.add_argument
    known = f"one of {', '.join(recipe_names())} (default: {DEFAULT_RECIPE})"
    add("recipe_name", nargs="?", metavar="RECIPE", help=known)
    # A positional cannot come out of a configuration file, an option can.
    add("--recipe", default=base.recipe, help="the same, for use in a file")
    add("--scale", choices=get_args(Scale), default=base.scale, help="size of the run")
    add("--config", action="config", help="YAML file with any of these settings")
    add("--workers", type=int, help="trainings at a time (default: 1 or 2, by cores)")
    shared = "file or Optuna URL by which several commands divide the trainings of one run folder"
    add("--storage", help=shared)
    if name == "tune":
        add("--run-dir", help="folder of the search (default: runs/RECIPE-SCALE-tune)")
        add("--output", help="where the settings go (default: tuned.json in the folder)")
        add("--trials", type=int, help="settings to try for each variant")
        add("--parts", nargs="+", default=[], help="variants to search settings for")
        aims = "what to make small, the loss first; several give a front"
        add("--objectives", nargs="+", default=[], choices=AIMS, help=aims)
        budget = "budgets of the chosen setting, such as stored=0.5"
        add("--at-most", nargs="+", default=[], help=budget)
    else:
        again = "take all settings from the run folder; the same command again goes on, too"
        seeds = "seeds of every variant"
        add("--run-dir", help="folder of the run (default: runs/RECIPE-SCALE)")
        add("--resume", action="store_true", help=again)
        add("--report", type=bool, default=True, help="write the report at the end")
        add("--variants", nargs="+", default=list(base.variants), help="what to train")
        add("--seeds", nargs="+", type=int, default=list(base.seeds), help=seeds)
    skip = _APART | (_decided(base) if name == "tune" else set())
    add_settings(parser, type(base), base, given=given, skip=skip)
    return parser


def _decided(base: RunConfig) -> frozenset[str]:
    """Settings that the search of a recipe decides."""
    experiment = find_recipe(base.recipe)
    return frozenset({"own"}) | experiment.tuned_by().decides if experiment.search else frozenset()


def _require_undecided(
    content: Mapping[str, Any], file: Path | None, *, decided: frozenset[str]
) -> None:
    """Refuse a file that gives what the search decides, such as the one that it wrote."""
    inner = {f"{k}.{n}" for k, group in content.items() if isinstance(group, dict) for n in group}
    given = sorted(decided & {*content, *inner})
    if given:
        raise ConfigError(
            f"tune: {file} gives {', '.join(given)}, which the search decides; leave that out"
        )


def _look_ahead(arguments: list[str]) -> Namespace:
    """What decides the settings that there are; of all other options only the names."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("recipe_name", nargs="*")
    parser.add_argument("--recipe", action="append", default=[])
    for option in ("--scale", "--config", "--run-dir"):
        parser.add_argument(option)
    for option in ("--resume", "--help", "-h"):
        parser.add_argument(option, action="store_true")
    for option in ("--variants", "--seeds", "--parts", "--objectives", "--at-most"):
        parser.add_argument(option, nargs="+")
    words = [w for w in arguments if w != "--" and not w.startswith("--print_config")]
    for option in {word.split("=")[0] for word in words if word.startswith("--")}:
        with suppress(ArgumentError):  # It is there already.
            parser.add_argument(option, nargs="?")
    return parser.parse_intermixed_args(words)


def _file(first: Namespace) -> Path | None:
    """The configuration file, that of the run folder if the run goes on."""
    if not first.resume:
        return None if first.config is None else Path(first.config)
    if first.run_dir is None:
        raise ConfigError("--resume needs the folder to go on in; add --run-dir DIR")
    if first.config is not None:
        raise ConfigError("--resume takes all settings from the run folder; leave --config out")
    return RunFolder(Path(first.run_dir)).config


def _base(first: Namespace, content: dict[str, Any]) -> RunConfig:
    """The run with the defaults: the recipe at its scale."""
    for name in ("recipe", "scale"):
        if not isinstance(content.get(name, ""), str):
            raise ConfigError(f"{name}: {content[name]!r} is no name; correct the file of settings")
    saved = content.get("recipe")
    named = {*first.recipe_name, *first.recipe}
    if first.resume:
        for given, there in ((named, saved), ({first.scale} - {None}, content.get("scale"))):
            for other in given - {there}:
                raise ConfigError(f"--resume: {first.run_dir} is a run of {there}, not of {other}")
    if saved is not None:
        named.add(saved)
    if len(named) > 1:
        raise ConfigError(
            f"need one recipe, got {' and '.join(sorted(named))}; leave the others out, also "
            "'recipe' in a file of settings"
        )
    name = next(iter(named), DEFAULT_RECIPE)
    scale = first.scale or content.get("scale") or find_recipe(name).default_scale
    return recipe_config(name, scale)
