"""All trainings of a run, one after the other or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.classifier.build import build_data
from orthotrain.lab.experiments.classifier.loop import train
from orthotrain.lab.experiments.classifier.networks import narrow_to
from orthotrain.lab.experiments.latent.config import LatentRun, LatentVariant
from orthotrain.lab.experiments.latent.loop import train_generator
from orthotrain.lab.run.config import ClassifierRun, Job, NetworkConfig, RunConfig, Variant
from orthotrain.lab.run.progress import OnProgress, Progress, ignore
from orthotrain.lab.run.record import RunFolder, read_json
from orthotrain.lab.run.reproducibility import resolve_device
from orthotrain.lab.run.workers import Workers

# Beyond two, workers on the machines this is meant for only take each other's cache.
MAX_WORKERS = 2


@dataclass(frozen=True)
class Task:
    """One training that is still to be done, and the variant whose results it needs first."""

    variant: Variant
    seed: int

    @property
    def needs(self) -> str | None:
        """Name of a variant all of whose seeds must have ended."""
        return self.variant.same_size_as


def run_all(
    config: RunConfig,
    variants: Sequence[Variant],
    *,
    folder: RunFolder,
    workers: int = 1,
    read_test: bool = True,
    on_progress: OnProgress = ignore,
) -> None:
    """Train every variant with every seed that has no result yet.

    Args:
        config: The run.
        variants: What to train; one with ``same_size_as`` waits for the other variant.
        folder: Where the run lives; :meth:`RunFolder.open` has been called.
        workers: Processes, 1 or 2. With 1 everything happens in this process.
        read_test: Measure on the test part at the end of each training.
        on_progress: Called in this process, also for messages of workers.

    Raises:
        ConfigError: ``workers`` is out of range, or a variant needs one without results.
        OrthotrainError: What a training raised; the others are stopped.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"run_all: workers={workers}; need 1 or {MAX_WORKERS}")
    tasks = list(_open_tasks(config, variants, folder=folder, on_progress=on_progress))
    _check_needs(tasks, config, folder=folder)
    with _locked(folder.path):
        if workers == 1 or len(tasks) < 2:
            _run_here(tasks, config, folder, read_test=read_test, on_progress=on_progress)
        else:
            _run_in_workers(
                tasks,
                config,
                folder,
                workers=workers,
                read_test=read_test,
                on_progress=on_progress,
            )


def _open_tasks(
    config: RunConfig,
    variants: Sequence[Variant],
    *,
    folder: RunFolder,
    on_progress: OnProgress,
) -> Iterator[Task]:
    # Seed by seed: a run that is stopped early has whole comparisons of some seeds.
    pairs = ((variant, seed) for seed in config.seeds for variant in variants)
    for variant, seed in sorted(pairs, key=lambda pair: pair[0].same_size_as is not None):
        place = folder.seed(variant.name, seed)
        if not place.result.exists():
            yield Task(variant, seed)
            continue
        result = read_json(place.result)
        on_progress(
            Progress(
                variant=variant.name,
                seed=seed,
                stage="skipped",
                step=result["steps"],
                total_steps=result["steps"],
                accuracy=result.get("validation_accuracy"),
            )
        )


def _check_needs(tasks: Sequence[Task], config: RunConfig, *, folder: RunFolder) -> None:
    coming = {task.variant.name for task in tasks}
    for task in tasks:
        if task.needs is None or task.needs in coming:
            continue
        if len(folder.results(task.needs, config.seeds)) < len(config.seeds):
            raise ConfigError(
                f"variant {task.variant.name} takes its size from {task.needs}, which has no "
                f"results in {folder.path}; add {task.needs} to --variants"
            )


def _model_of(task: Task, config: ClassifierRun, folder: RunFolder) -> NetworkConfig:
    if task.needs is None:
        return config.model
    stored = [result["stored"] for result in folder.results(task.needs, config.seeds)]
    data = build_data(config.data, device=torch.device("cpu"))
    return narrow_to(
        config.model,
        stored=round(sum(stored) / len(stored)),
        image_shape=data.image_shape,
        classes=data.classes,
    )


def _train_task(
    task: Task, config: RunConfig, folder: RunFolder, *, read_test: bool, on_progress: OnProgress
) -> None:
    place = folder.seed(task.variant.name, task.seed)
    if isinstance(config, LatentRun):
        assert isinstance(task.variant, LatentVariant)
        train_generator(task.variant, task.seed, config, folder=place, on_progress=on_progress)
        return
    assert isinstance(config, ClassifierRun)
    train(
        Job(task.variant, task.seed, _model_of(task, config, folder)),
        config,
        folder=place,
        data=build_data(config.data, device=resolve_device(config.device)),
        read_test=read_test,
        on_progress=on_progress,
    )


def _run_here(
    tasks: Sequence[Task],
    config: RunConfig,
    folder: RunFolder,
    *,
    read_test: bool,
    on_progress: OnProgress,
) -> None:
    with _threads(config.threads):
        for task in tasks:
            _train_task(task, config, folder, read_test=read_test, on_progress=on_progress)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_workers(
    tasks: Sequence[Task],
    config: RunConfig,
    folder: RunFolder,
    *,
    workers: int,
    read_test: bool,
    on_progress: OnProgress,
) -> None:
    needed = {task.needs for task in tasks}
    # What others wait for goes first.
    waiting = sorted(tasks, key=lambda task: task.variant.name not in needed)
    running: set[Task] = set()
    with Workers[Task](workers, threads=config.threads, on_progress=on_progress) as pool:
        while waiting or running:
            busy = {task.variant.name for task in (*waiting, *running)}
            for task in [task for task in waiting if task.needs not in busy]:
                waiting.remove(task)
                running.add(task)
                pool.submit(task, _train_task, task, config, folder, read_test=read_test)
            running -= pool.wait_for_one()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second command out of the folder; the system lets go when this process ends."""
    try:
        import fcntl
    except ImportError:  # Not on Windows, where a second command must be avoided by hand.
        yield
        return
    with (folder / ".lock").open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training in {folder}; wait for it, or choose another folder "
                "with --run-dir"
            ) from error
        yield
