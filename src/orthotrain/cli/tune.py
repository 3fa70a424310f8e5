"""``orthotrain tune``: choose low-rank settings on the validation part and write them down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orthotrain.cli.command import RunCommand
from orthotrain.cli.train import train_variants
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.lowrank.tuning import (
    Outcome,
    choose,
    grid_of,
    grid_variants,
    outcome,
    search_record,
    settings_record,
    tuning_config,
)
from orthotrain.lab.run.record import RunFolder, write_json


def run_tune(command: RunCommand) -> int:
    """Train every setting of the grid, choose one, write tune.json and the settings file."""
    arguments = command.arguments
    recipe = find_recipe(command.config.recipe)
    config = tuning_config(recipe, command.config)
    folder = RunFolder(Path(arguments.run_dir or f"runs/{recipe.name}-{config.scale}-tune"))
    grid = grid_of(recipe)
    variants = grid_variants(grid)
    output = Path(arguments.output) if arguments.output else folder.path / "tuned.json"
    if not output.parent.is_dir() and output.parent != folder.path:
        raise ConfigError(f"--output: the folder {output.parent} does not exist; create it first")
    train_variants(command, recipe, config, variants, folder=folder, read_test=False)

    dense, *outcomes = (outcome(v.name, folder.results(v.name, config.seeds)) for v in variants)
    chosen = choose(outcomes, dense=dense, max_accuracy_loss=grid.max_accuracy_loss)
    settings = next(v.lowrank for v in variants if v.name == chosen.name)
    if settings is None:
        raise ConfigError(f"tune: {recipe.name} has an empty grid; add rules and delays to it")
    record = search_record(recipe, config, dense=dense, outcomes=outcomes, chosen=chosen)
    write_json(folder.path / "tune.json", record)
    write_json(
        output,
        settings_record(settings, recipe=recipe, config=config, chosen=chosen, dense=dense),
    )
    print(_table([dense, *outcomes], chosen))
    print(f"chosen: {chosen.name}, written to {output.resolve()}")
    return 0


def _table(outcomes: Sequence[Outcome], chosen: Outcome) -> str:
    width = max(len(o.name) for o in outcomes)
    lines = [f"  {'setting':{width}}  validation %      stored %  trainable %"]
    lines += [
        f"{'>' if o.name == chosen.name else ' '} {o.name:{width}}  "
        f"{100 * o.accuracy:6.2f} +- {100 * o.accuracy_std:4.2f}  {100 * o.stored:8.1f}  "
        f"{100 * o.trainable:11.1f}"
        for o in outcomes
    ]
    return "\n".join(lines)
