"""``orthotrain tune``: choose settings on the validation part and write them down."""

from __future__ import annotations

from pathlib import Path

from orthotrain.cli.command import RunCommand
from orthotrain.cli.train import train_variants
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.run.record import RunFolder, write_json


def run_tune(command: RunCommand) -> int:
    """Train everything that the search tries, choose, write tune.json and the settings file."""
    arguments = command.arguments
    experiment = find_recipe(command.config.recipe)
    search = experiment.tuned_by()
    config, variants = search.config(command.config), search.variants()
    folder = RunFolder(Path(arguments.run_dir or f"runs/{experiment.name}-{config.scale}-tune"))
    output = Path(arguments.output) if arguments.output else folder.path / "tuned.json"
    if not output.parent.is_dir() and output.parent != folder.path:
        raise ConfigError(f"--output: the folder {output.parent} does not exist; create it first")
    train_variants(command, experiment, config, variants, folder=folder, read_test=False)
    choice = search.choice(config, {v.name: folder.results(v.name, config.seeds) for v in variants})
    write_json(folder.path / "tune.json", choice.record)
    write_json(output, choice.settings)
    print(choice.table)
    print(f"chosen: {choice.name}, written to {output.resolve()}")
    return 0
