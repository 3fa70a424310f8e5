"""All trainings of a run, one after the other or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from orthotrain.errors import ConfigError, DataError, WorkerError
from orthotrain.files import remove_abandoned
from orthotrain.lab.named import named
from orthotrain.lab.run.config import RunConfig, Variant
from orthotrain.lab.run.loop import take_part, train
from orthotrain.lab.run.progress import OnProgress, Progress, ignore
from orthotrain.lab.run.record import RunFolder, plain, read_json, training_settings
from orthotrain.lab.run.space import own_config
from orthotrain.lab.run.stop import pause, termination_raises
from orthotrain.lab.run.team import ALONE, Team
from orthotrain.lab.run.workers import workers_that_report

if TYPE_CHECKING:
    from orthotrain.lab.run.claims import Claims

_Name = tuple[str, int]

#: A claim without a sign of life for so long is ended; there are four signs in that time.
STALE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class _Task:
    """One training that is still to be done."""

    variant: Variant
    seed: int

    @property
    def name(self) -> _Name:
        """Of its variant, and its seed."""
        return self.variant.name, self.seed

    def needs(self, config: RunConfig) -> list[_Name]:
        """The trainings that must have ended before."""
        variant = self.variant
        if variant.needs is None:
            return []
        names = (variant.needs,) if isinstance(variant.needs, str) else variant.needs
        seeds = (self.seed,) if variant.same_seed else config.seeds
        return [(name, seed) for name in names for seed in seeds]


@dataclass(frozen=True)
class Run:
    """What all trainings of a run have in common.

    Attributes:
        build: ``"module:function"`` that makes a trainer of ``(config, variant, seed)``.
        config: Settings.
        folder: Where the run lives; it is :meth:`RunFolder.locked` and has been opened.
        read_test: Measure on the test part at the end of each training.
        team: The processes that train each of them together.
        storage: Where commands that divide the trainings claim them, see :class:`Claims`; None
            where this one does all.
        stale_seconds: A claim without a sign of life for so long is free for others.
    """

    build: str
    config: RunConfig
    folder: RunFolder
    read_test: bool = True
    team: Team = ALONE
    storage: str | None = None
    stale_seconds: float = STALE_SECONDS

    def result(self, name: _Name) -> Path:
        """Where the result of a training is; it is done where there is one."""
        return self.folder.seed(*name).result

    def train_one(self, variant: Variant, seed: int, *, on_progress: OnProgress) -> None:
        """The training of a variant with a seed; what it needs has ended."""
        self.train(_Task(variant, seed), on_progress=on_progress)

    def train(self, task: _Task, *, on_progress: OnProgress) -> None:
        """One training, from those that its variant needs to its own result."""
        variant, config = task.variant, own_config(self.config, task.variant.name)
        if needed := task.needs(self.config):
            variant = variant.with_trainings([self.folder.seed(*name).path for name in needed])
        folder = self.folder.seed(variant.name, task.seed)
        training: Any = {
            "trainer": named(self.build)(config, variant, task.seed),
            "variant": variant,
            "seed": task.seed,
            "folder": replace(folder, settings=training_settings(config)),
            "team": self.team,
        }
        if self.team.main:
            train(**training, read_test=self.read_test, on_progress=on_progress)
        else:
            take_part(**training)


def run_all(
    run: Run, variants: Sequence[Variant], *, workers: int = 1, on_progress: OnProgress = ignore
) -> None:
    """Train every variant with every seed that has no result yet.

    Args:
        run: Settings and folder.
        variants: What to train; one that needs another's results waits for them.
        workers: Processes. With 1 everything happens in this process.
        on_progress: Called in this process, also for messages of workers.

    Raises:
        ConfigError: ``workers`` is below one, a variant needs one without results, or the storage
            cannot be used.
        OrthotrainError: What a training raised; the others are stopped.
        KeyboardInterrupt: SIGTERM or Ctrl-C came; what trained has saved a checkpoint.
    """
    if workers < 1:
        raise ConfigError(f"run_all: workers={workers}; need at least 1")
    tasks = list(_open_tasks(run, variants, on_progress=on_progress))
    _check_needs(tasks, run)
    with termination_raises():
        if run.storage is not None:
            _divide(tasks, run, workers=workers, on_progress=on_progress)
            return
        if run.team.main:  # Nothing else writes here.
            remove_abandoned(run.folder.path)
        if workers == 1 or len(tasks) < 2:
            with threads_of(run.config.threads):
                for task in tasks:
                    run.train(task, on_progress=on_progress)
        else:
            _run_in_workers(tasks, run, workers=workers, on_progress=on_progress)


def _open_tasks(
    run: Run, variants: Sequence[Variant], *, on_progress: OnProgress
) -> Iterator[_Task]:
    # Seed by seed: a run that is stopped early has whole comparisons of some seeds.
    pairs = ((variant, seed) for seed in run.config.seeds for variant in variants)
    for variant, seed in sorted(pairs, key=lambda pair: _waits_for_all_seeds(pair[0])):
        place = run.folder.seed(variant.name, seed)
        if not place.result.exists():
            yield _Task(variant, seed)
            continue
        on_progress(_skipped(run, _Task(variant, seed)))


def _skipped(run: Run, task: _Task) -> Progress:
    """What is told of a training that has a result already."""
    variant, seed = task.name
    result = _result_of(run.result(task.name), variant, seed)
    return Progress(
        variant=variant,
        seed=seed,
        stage="skipped",
        step=result["steps"],
        total_steps=result["steps"],
        accuracy=result.get("validation_accuracy"),
    )


def _result_of(path: Path, variant: str, seed: int) -> dict[str, Any]:
    """A result that was written before; raises where it is not that of this training."""
    result = read_json(path)
    found = result.get("variant"), result.get("seed")
    if found != (variant, seed) or type(result.get("steps")) is not int:
        raise DataError(
            f"{path} is not the result of {variant} with seed {seed}; put it back where it "
            "belongs, or remove it to have it made again"
        )
    return result


def _waits_for_all_seeds(variant: Variant) -> bool:
    return variant.needs is not None and not variant.same_seed


def _check_needs(tasks: Sequence[_Task], run: Run) -> None:
    coming = {task.name for task in tasks}
    for task in tasks:
        for needed, seed in task.needs(run.config):
            if (needed, seed) in coming:
                continue
            result = run.folder.seed(needed, seed).result
            if result.exists():
                _result_of(result, needed, seed)
            else:
                raise ConfigError(
                    f"variant {task.variant.name} is built from the results of {needed}, which "
                    f"has none with seed {seed} in {run.folder.path}; add {needed} to --variants"
                )


def _needed_first(tasks: Sequence[_Task], run: Run) -> list[_Task]:
    """What others wait for goes first."""
    needed = {name for task in tasks for name in task.needs(run.config)}
    return sorted(tasks, key=lambda task: task.name not in needed)


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Inside, this process computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_workers(
    tasks: Sequence[_Task], run: Run, *, workers: int, on_progress: OnProgress
) -> None:
    waiting = _needed_first(tasks, run)
    running: dict[Future[None], _Task] = {}
    threads = run.config.threads
    with workers_that_report(workers, threads=threads, on_progress=on_progress) as submit:
        while waiting or running:
            busy = {task.name for task in (*waiting, *running.values())}
            for task in [task for task in waiting if busy.isdisjoint(task.needs(run.config))]:
                waiting.remove(task)
                running[submit(run.train, task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                try:
                    future.result()
                except WorkerError as error:
                    raise WorkerError(
                        f"run_all: the worker process that trained {task.variant.name} with seed "
                        f"{task.seed} did not finish: {error}; what trained beside it has saved. "
                        "The same command goes on, with --workers 1 it needs less memory"
                    ) from error


def _divide(tasks: Sequence[_Task], run: Run, *, workers: int, on_progress: OnProgress) -> None:
    """Train what no other command trains, until all is done; tell of what others did at the end."""
    told: set[_Name] = set()

    def tell(progress: Progress) -> None:
        if progress.stage == "finished":
            told.add((progress.variant, progress.seed))
        on_progress(progress)

    threads = run.config.threads
    _claims_of(run)  # What is wrong with the storage is told before anything starts.
    if workers == 1:
        with threads_of(threads):
            train_unclaimed(run, tasks, on_progress=tell)
    else:
        with workers_that_report(workers, threads=threads, on_progress=tell) as submit:
            for future in as_completed(
                [submit(train_unclaimed, run, tasks) for _ in range(workers)]
            ):
                try:
                    future.result()
                except WorkerError as error:
                    raise WorkerError(
                        f"run_all: a worker process did not finish: {error}; what trained beside "
                        "it has saved. The same command goes on, once the claim of the process is "
                        f"{run.stale_seconds:g} s old"
                    ) from error
    for task in tasks:
        if task.name not in told:
            on_progress(_skipped(run, task))


def train_unclaimed(run: Run, tasks: Sequence[_Task], *, on_progress: OnProgress) -> None:
    """Train what nobody else has claimed, one after the other, until all of it has results.

    Args:
        run: Settings, folder and storage.
        tasks: The trainings.
        on_progress: Told of those that are trained here.
    """
    claims = _claims_of(run)
    by_name = {task.name: task for task in _needed_first(tasks, run)}
    while waiting := [task for task in by_name.values() if not run.result(task.name).exists()]:
        ready = [
            task.name
            for task in waiting
            if all(run.result(name).exists() for name in task.needs(run.config))
        ]
        name = claims.take(ready)
        if name is None:
            pause(claims.seconds_between_signs)
            continue
        with claims.held(name) as found:
            if not run.result(name).exists():  # Another may have ended it just before the claim.
                run.train(by_name[name], on_progress=on_progress)
            result = read_json(run.result(name))
            found |= {key: value for key, value in result.items() if isinstance(value, int | float)}


def _claims_of(run: Run) -> Claims:
    from orthotrain.lab.run.claims import Claims  # where there is a storage, alone

    assert run.storage is not None
    settings = plain(run.config)
    return Claims(run.storage, run.folder, settings=settings, stale_seconds=run.stale_seconds)
