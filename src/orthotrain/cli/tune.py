"""``orthotrain tune``: search settings on the validation part and write them down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from orthotrain.cli.command import RunCommand
from orthotrain.cli.launched import processes
from orthotrain.cli.places import require_place
from orthotrain.cli.progress import shown_progress
from orthotrain.cli.train import worker_count
from orthotrain.errors import ConfigError
from orthotrain.files import write_atomically
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.run.config import RunConfig, need
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.record import RunFolder, plain, read_json, saving, write_json
from orthotrain.lab.run.space import Part, Search


def run_tune(command: RunCommand) -> int:
    """Try settings, choose, write tune.json, the settings and the report."""
    arguments = command.arguments
    experiment = find_recipe(command.config.recipe)
    search = experiment.tuned_by()
    name = f"runs/{experiment.name}-{command.config.scale}-tune"
    folder = RunFolder(Path(arguments.run_dir or name))
    output = Path(arguments.output) if arguments.output else folder.path / "tuned.json"
    record = folder.path / "tune.json"
    if output.parent != folder.path or folder.path.is_dir():
        for file in arguments.config or [None]:
            require_place(output, read=None if file is None else Path(str(file)))
    ours = {folder.config, folder.run, record, folder.path / "chosen.yaml"}
    if output.resolve() in {path.resolve() for path in ours}:
        raise ConfigError(f"--output: {output} is a file of the search itself; choose another name")
    parts = [part.with_objectives(arguments.objectives) for part in search.chosen(arguments.parts)]
    told = _search(command, experiment, search, parts, folder=folder)
    # An earlier search of other parts in this folder stays.
    before = read_json(record)["parts"] if record.exists() else []
    names = {one["variant"] for one in told}
    told = [*(one for one in before if one["variant"] not in names), *told]
    chosen = {one["variant"]: one["chosen"]["settings"] for one in told}
    chosen |= {
        name: chosen[part.variant]
        for part in search.parts if part.variant in chosen
        for name in part.also
    }  # fmt: skip
    own = {name: {**command.config.own.get(name, {}), **found} for name, found in chosen.items()}
    config = replace(command.config, own={**command.config.own, **own})
    source = f"{command.line}, seeds {', '.join(map(str, search.seeds))}"
    searched = {
        "schema": 2, "recipe": experiment.name, "scale": config.scale,
        "seeds": list(search.seeds), "command": command.line, "parts": told,
    }  # fmt: skip
    write_json(record, searched)
    write_json(output, {"source": source, "own": chosen})
    _write_config(folder.path / "chosen.yaml", config)
    for one in told:
        found = one["chosen"]
        said = {**found["values"], **found["settings"]}.items()
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in said)
        edge = ", ".join(found["at_edge"])
        more = f"; at the edge of what was tried: {edge}" if edge else ""
        print(f"{one['variant']}, trial {found['trial']}: {shown}{more}")
    from orthotrain.lab.report import write_report

    print(f"report: {write_report([folder.path], folder.report).resolve()}")
    print(f"chosen, written to {output.resolve()}; train all of them side by side with:")
    print(f"  orthotrain train --config {folder.path / 'chosen.yaml'}")
    return 0


def _search(
    command: RunCommand, experiment: Experiment, search: Search, parts: list[Part], *,
    folder: RunFolder,
) -> list[dict[str, Any]]:  # fmt: skip
    arguments, config = command.arguments, search.config(command.config)
    trials = search.trials if arguments.trials is None else arguments.trials
    need(trials >= 1, f"--trials {trials}: need at least 1")
    need(processes() == 1, "tune: start it without torchrun; --workers and --storage divide trials")
    at_most = _budgets(arguments.at_most, parts)
    workers = worker_count(arguments.workers, device=config.device, threads=config.threads)
    from orthotrain.lab.run.storage import load_optuna

    load_optuna("tune")
    # torch is loaded here, after the options are checked and before anything is written.
    from orthotrain.lab.run.jobs import Run
    from orthotrain.lab.run.reproducibility import environment, resolve_device
    from orthotrain.lab.run.search import SearchOptions, run_search

    page = replace(experiment, page="orthotrain.lab.report.searched:PAGE")
    device = resolve_device(config.device)
    with folder.locked(shared=arguments.storage is not None):
        folder.open(config, shared=arguments.storage is not None)
        here = environment(command=command.line, device=device, threads=config.threads)
        folder.describe(page, config, variants=(), environment=here)
        print(f"run folder: {folder.path.resolve()}", flush=True)
        # Named after the search, as claims on what several commands train are.
        below = RunFolder(folder.path / f"{folder.path.resolve().name}-trials")
        below.path.mkdir(exist_ok=True)
        run = Run(experiment.build, config, below, read_test=False, storage=arguments.storage)
        with shown_progress(None) as on_progress:  # what was done before is not told
            return run_search(
                run, experiment, parts, SearchOptions(trials, at_most, workers),
                name=folder.path.resolve().name, on_progress=on_progress,
            )  # fmt: skip


def _budgets(given: list[str], parts: list[Part]) -> dict[str, float]:
    """``["stored=0.5"]`` by name."""
    found = {}
    known = {"stored", "compute", *(aim.name for part in parts for aim in part.aims)}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = float("nan")
        need(
            name in known and found[name] > 0,
            f"--at-most {text}: need a name and a positive number, such as stored=0.5; names are "
            f"{', '.join(sorted(known))}",
        )
    return found


def _write_config(path: Path, config: RunConfig) -> None:
    import yaml

    text = yaml.safe_dump(plain(config), sort_keys=False)
    with saving(path):
        write_atomically(path, text.encode())
