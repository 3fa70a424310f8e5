"""``orthotrain tune``: choose settings on the validation part and write them down."""

from __future__ import annotations

from pathlib import Path

from orthotrain.cli.command import RunCommand
from orthotrain.cli.places import require_place
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
    record = folder.path / "tune.json"
    if output.parent != folder.path or folder.path.is_dir():
        for file in arguments.config or [None]:
            require_place(output, read=None if file is None else Path(str(file)))
    if output.resolve() in {path.resolve() for path in (folder.config, folder.run, record)}:
        raise ConfigError(f"--output: {output} is a file of the search itself; choose another name")
    if not train_variants(command, experiment, config, variants, folder=folder, read_test=False):
        return 0
    choice = search.choice(config, {v.name: folder.results(v.name, config.seeds) for v in variants})
    write_json(record, choice.record)
    write_json(output, choice.settings)
    print(choice.table)
    print(f"chosen: {choice.name}, written to {output.resolve()}")
    return 0
