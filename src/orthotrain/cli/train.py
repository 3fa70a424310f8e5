"""``orthotrain train``: all variants and seeds of a recipe, then the report."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

from orthotrain.cli.command import RunCommand
from orthotrain.cli.progress import shown_progress
from orthotrain.errors import ConfigError
from orthotrain.lab.run.config import RunConfig, Variant, variants_of
from orthotrain.lab.run.record import RunFolder


def run_train(command: RunCommand) -> int:
    """Train what has no result yet, print the table, write the report."""
    arguments = command.arguments
    config = command.config
    folder = RunFolder(Path(arguments.run_dir or f"runs/{config.recipe}-{config.scale}"))
    variants = variants_of(config)
    train_variants(command, config, variants, folder=folder, read_test=True)
    print(final_table(variants, config, folder=folder))
    if arguments.report:
        from orthotrain.lab.report import write_report

        print(f"report: {write_report([folder.path], folder.report).resolve()}")
    return 0


def train_variants(
    command: RunCommand,
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
    from orthotrain.lab.run.jobs import run_all
    from orthotrain.lab.run.reproducibility import environment, resolve_device

    folder.describe(
        environment=environment(
            command=command.line, device=resolve_device(config.device), threads=config.threads
        ),
        config=config,
        variants=tuple(variants),
    )
    with shown_progress(len(variants) * len(config.seeds)) as on_progress:
        run_all(
            config,
            variants,
            folder=folder,
            workers=workers,
            read_test=read_test,
            on_progress=on_progress,
        )


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
    """One line a variant: mean and standard deviation over seeds."""
    results = {v.name: folder.results(v.name, config.seeds) for v in variants}
    heading: tuple[str, ...]
    match config.family:
        case "lowrank":
            dense = _full_size(config, folder)
            heading = _LOWRANK_HEADING
            cells = {name: _lowrank_cells(found, dense=dense) for name, found in results.items()}
        case "spectral":
            heading = _SPECTRAL_HEADING
            cells = {name: _spectral_cells(found) for name, found in results.items()}
        case "latent":
            measured = {name for found in results.values() for name in found[0]["scores"]}
            scores = [name for name in _LATENT_SCORES if name in measured]
            heading = ("variant", *(name.replace("_", " ") for name in scores), "ms/step")
            cells = {name: _latent_cells(found, scores) for name, found in results.items()}
        case _:
            assert_never(config.family)
    lines = [heading, *((variant.title, *cells[variant.name]) for variant in variants)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


_LOWRANK_HEADING = ("variant", "test %", "stored %", "trainable %", "ms/step at the end")
# What fits a line; the report has all of them.
_LATENT_SCORES = (
    *("alignment", "alignment_sefa", "disentanglement", "disentanglement_sefa"),
    *("vp", "vp_sefa", "frechet", "frechet_floor"),
)
_SPECTRAL_HEADING = ("variant", "test error %", "validation error %", "weight norm", "ms/step")


def _lowrank_cells(results: Sequence[dict[str, Any]], *, dense: float) -> tuple[str, ...]:
    return (
        spread([100 * result["test_accuracy"] for result in results], digits=2),
        spread([100 * result["stored"] / dense for result in results], digits=1),
        spread([100 * result["trainable"] / dense for result in results], digits=1),
        spread([result["step_ms_final"] for result in results], digits=1),
    )


def _spectral_cells(results: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    norms = [result["weight_norm"] for result in results if result["weight_norm"] is not None]
    return (
        spread([100 * (1 - result["test_accuracy"]) for result in results], digits=2),
        spread([100 * (1 - result["validation_accuracy"]) for result in results], digits=2),
        spread(norms, digits=2) if norms else "-",
        spread([result["step_ms_final"] for result in results], digits=1),
    )


def _latent_cells(results: Sequence[dict[str, Any]], scores: Sequence[str]) -> tuple[str, ...]:
    return (
        *(
            spread([r["scores"][name] for r in results if name in r["scores"]], digits=3)
            for name in scores
        ),
        spread([result["step_ms"] for result in results], digits=1),
    )


def _full_size(config: RunConfig, folder: RunFolder) -> float:
    """Numbers of the full dense network, the 100 % of every share: no variant has more."""
    results = [r for name in config.variants for r in folder.results(name, config.seeds)]
    return float(max(result["dense"] for result in results))


def spread(values: Sequence[float], *, digits: int) -> str:
    """Mean and sample standard deviation, the latter only where there is one."""
    mean = statistics.fmean(values) if values else math.nan
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} +- {statistics.stdev(values):.{digits}f}"
