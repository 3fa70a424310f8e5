"""``orthotrain train``: all variants and seeds of a recipe, then the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from orthotrain.cli.command import RunCommand
from orthotrain.cli.progress import shown_progress
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.run.config import RunConfig, Variant
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.record import RunFolder


def run_train(command: RunCommand) -> int:
    """Train what has no result yet, print the table, write the report."""
    arguments = command.arguments
    config = command.config
    experiment = find_recipe(config.recipe)
    folder = RunFolder(Path(arguments.run_dir or f"runs/{experiment.name}-{config.scale}"))
    variants = experiment.chosen(config)
    train_variants(command, experiment, config, variants, folder=folder, read_test=True)
    from orthotrain.lab.report import closing_table, write_report

    print(closing_table(folder.path))
    if arguments.report:
        print(f"report: {write_report([folder.path], folder.report).resolve()}")
    return 0


def train_variants(
    command: RunCommand,
    experiment: Experiment,
    config: RunConfig,
    variants: Sequence[Variant],
    *,
    folder: RunFolder,
    read_test: bool,
) -> None:
    """Open the folder and train every variant with every seed, showing progress."""
    workers = worker_count(command.arguments.jobs, device=config.device, threads=config.threads)
    # torch is loaded here, after the options are checked and before anything is written.
    from orthotrain.lab.run.jobs import Run, run_all
    from orthotrain.lab.run.reproducibility import environment, resolve_device

    device = resolve_device(config.device)
    with folder.locked():
        folder.open(config)
        print(f"run folder: {folder.path.resolve()}", flush=True)
        folder.describe(
            experiment,
            config,
            variants=variants,
            environment=environment(command=command.line, device=device, threads=config.threads),
        )
        with shown_progress(len(variants) * len(config.seeds)) as on_progress:
            run = Run(experiment.build, config, folder, read_test)
            run_all(run, variants, workers=workers, on_progress=on_progress)


def worker_count(jobs: int | None, *, device: str, threads: int) -> int:
    """Trainings at a time: as asked, else two where the CPU has the cores for both."""
    if jobs is not None:
        if jobs not in (1, 2):
            raise ConfigError(f"--jobs {jobs}: need 1 or 2; more only take each other's cache")
        return jobs
    # Where the process may run, not what the machine has: they differ in containers.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 2 if device == "cpu" and cores >= 2 * threads else 1
