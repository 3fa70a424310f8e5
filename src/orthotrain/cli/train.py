"""``orthotrain train``: all variants and seeds of a recipe, then the report."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    print(final_table(variants, config, folder=folder))
    if arguments.report:
        from orthotrain.lab.report import write_report

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
    folder.open(config)
    print(f"run folder: {folder.path.resolve()}", flush=True)

    # torch is loaded here, after everything that can be checked without it.
    from orthotrain.lab.run.jobs import Run, run_all
    from orthotrain.lab.run.reproducibility import environment, resolve_device

    folder.describe(
        experiment,
        config,
        variants=variants,
        environment=environment(
            command=command.line, device=resolve_device(config.device), threads=config.threads
        ),
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


def final_table(variants: Sequence[Variant], config: RunConfig, *, folder: RunFolder) -> str:
    """One line per variant: mean and standard deviation over seeds of what results hold."""
    results = {v.name: folder.results(v.name, config.seeds) for v in variants}
    every = [result for found in results.values() for result in found]
    # Numbers of the full network, the 100 % of every share: no variant has more.
    dense = max((result["dense"] for result in every if "dense" in result), default=0)
    columns = [
        (heading, digits, read)
        for heading, digits, read in _COLUMNS
        if any(read(result, dense) is not None for result in every)
    ]
    lines = [("variant", *(heading for heading, _, _ in columns))]
    for variant in variants:
        cells = []
        for _, digits, read in columns:
            values = [read(result, dense) for result in results[variant.name]]
            known = [value for value in values if value is not None]
            cells.append(spread(known, digits=digits) if known else "-")
        lines.append((variant.title, *cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


Read = Callable[[Mapping[str, Any], float], float | None]


def _field(name: str, *, times: float = 1.0) -> Read:
    def read(result: Mapping[str, Any], dense: float) -> float | None:
        value = result.get(name)
        return None if value is None else times * value

    return read


def _share(name: str) -> Read:
    return lambda result, dense: 100 * result[name] / dense if "dense" in result else None


def _score(name: str) -> Read:
    return lambda result, dense: result.get("scores", {}).get(name)


# What fits a line; the report has all of them.
_SCORES = (
    *("alignment", "alignment_sefa", "disentanglement", "disentanglement_sefa"),
    *("vp", "vp_sefa", "frechet", "frechet_floor"),
)
_COLUMNS: tuple[tuple[str, int, Read], ...] = (
    ("test %", 2, _field("test_accuracy", times=100)),
    ("validation %", 2, _field("validation_accuracy", times=100)),
    ("stored %", 1, _share("stored")),
    ("trainable %", 1, _share("trainable")),
    ("weight norm", 2, _field("weight_norm")),
    *((name.replace("_", " "), 3, _score(name)) for name in _SCORES),
    ("ms/step", 1, _field("step_ms")),
    ("ms/step at the end", 1, _field("step_ms_final")),
)


def spread(values: Sequence[float], *, digits: int) -> str:
    """Mean and sample standard deviation, the latter only where there is one."""
    mean = statistics.fmean(values) if values else math.nan
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} +- {statistics.stdev(values):.{digits}f}"
