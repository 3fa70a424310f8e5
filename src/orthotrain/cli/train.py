"""``orthotrain train``: all variants and seeds of a recipe, then the report."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from orthotrain.cli.command import RunCommand
from orthotrain.cli.launched import processes
from orthotrain.cli.progress import shown_progress
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.run.config import RunConfig, Variant
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.progress import ignore
from orthotrain.lab.run.record import RunFolder, plain

if TYPE_CHECKING:
    from orthotrain.lab.run.team import Team


def run_train(command: RunCommand) -> int:
    """Train what has no result yet, print the table, write the report."""
    arguments = command.arguments
    config = command.config
    experiment = find_recipe(config.recipe)
    folder = RunFolder(Path(arguments.run_dir or f"runs/{experiment.name}-{config.scale}"))
    variants = experiment.chosen(config)
    if not train_variants(command, experiment, config, variants, folder=folder):
        return 0
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
) -> bool:
    """Open the folder and train every variant with every seed, showing progress.

    Returns:
        Whether this process tells the result: of those that torchrun started the first one does.
    """
    workers = worker_count(command.arguments.workers, device=config.device, threads=config.threads)
    storage = command.arguments.storage
    if storage is not None and processes() > 1:
        raise ConfigError(
            f"--storage {storage}: torchrun started {processes()} processes, which train one model "
            "at a time together; leave --storage out, or start without torchrun"
        )
    # torch is loaded here, after the options are checked and before anything is written.
    from orthotrain.lab.run.jobs import Run, run_all
    from orthotrain.lab.run.reproducibility import environment, resolve_device
    from orthotrain.lab.run.team import joined

    with joined(config.device, count=processes()) as team, ExitStack() as opened:
        device = resolve_device(config.device)
        agreement = team.processes
        with agreement.told_of_failure("train"):
            on_progress = ignore
            if team.main:
                opened.enter_context(folder.locked(shared=storage is not None))
                folder.open(config, shared=storage is not None)
                print(f"run folder: {folder.path.resolve()}", flush=True)
                here = environment(
                    command=command.line, device=device, threads=config.threads,
                    processes=team.count,
                )  # fmt: skip
                folder.describe(experiment, config, variants=variants, environment=here)
                on_progress = opened.enter_context(
                    shown_progress(len(variants) * len(config.seeds))
                )
            agreement.require_same("train", [f"{k}: {v}" for k, v in plain(config).items()])
            require_one_folder(folder, team)
        run = Run(experiment.build, config, folder, team=team, storage=storage)
        run_all(run, variants, workers=workers, on_progress=on_progress)
        return team.main


def require_one_folder(folder: RunFolder, team: Team) -> None:
    """Raise on all processes where one of them sees another run folder than the first one's."""
    seen = folder.run.read_bytes() if folder.run.exists() else b""
    team.processes.require_same(
        "train", [f"run.json of {folder.path}: {hashlib.sha256(seen).hexdigest()[:16]}"],
        remedy="All machines need the same folder; give one that they share with --run-dir",
    )  # fmt: skip


def worker_count(workers: int | None, *, device: str, threads: int) -> int:
    """Trainings at a time: as asked, else two where the CPU has the cores for both."""
    if processes() > 1:
        if workers not in (None, 1):
            raise ConfigError(
                f"--workers {workers}: torchrun started {processes()} processes, which train one "
                "model at a time together; leave --workers out, or start without torchrun"
            )
        return 1
    # Where the process may run, not what the machine has: they differ in containers.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if workers is None:
        return 2 if device == "cpu" and cores >= 2 * threads else 1
    if not 1 <= workers <= max(2, cores):
        raise ConfigError(
            f"--workers {workers}: need 1 to {max(2, cores)}; more than there are cores only take "
            "each other's cache"
        )
    return workers
