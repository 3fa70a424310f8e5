"""Showing training: bars in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from orthotrain.lab.run.progress import OnProgress, Progress

# Files with more numbers take seconds to decompose.
_LONG: Final = 20_000_000


def shown_layers(numbers: int) -> Callable[[int, int, str], None] | None:
    """A callback that says on standard error how many layers are decomposed; None for small files.

    Args:
        numbers: How many the file holds.
    """
    if numbers < _LONG:
        return None

    def take(done: int, total: int, name: str) -> None:
        if 4 * done // total > 4 * (done - 1) // total:  # at each quarter
            print(f"{done} of {total} layers; next {name}", file=sys.stderr, flush=True)

    return take


@contextmanager
def shown_progress(trainings: int | None) -> Iterator[OnProgress]:
    """A callback that shows progress while the block runs.

    Args:
        trainings: How many trainings there will be, skipped ones included; None where that is
            not known.
    """
    if sys.stdout.isatty():
        with _bars(trainings) as take:
            yield take
    else:
        yield _Lines(trainings)


def describe(progress: Progress) -> str:
    """Loss, accuracy, rank and time in a few words, what is not known left out."""
    words = []
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.3f}")
    if progress.accuracy is not None:
        words.append(f"validation {100 * progress.accuracy:.1f} %")
    if progress.rank is not None:
        words.append(f"rank {100 * progress.rank:.0f} %")
    if progress.step_ms is not None:
        words.append(f"{progress.step_ms:.1f} ms/step")
    return "  ".join(words)


class _Lines:
    """One line at each end and each quarter of a training, whatever its length."""

    def __init__(self, trainings: int | None) -> None:
        self._trainings = trainings
        self._ended = 0
        self._quarters: dict[tuple[str, int], int] = {}
        self._planned: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        name = f"{progress.variant} seed {progress.seed}"
        match progress.stage:
            case "started":
                where = f"goes on at step {progress.step}" if progress.step else "starts"
                self._say(f"{name}: {where} of {progress.total_steps} steps")
                self._say_plan(progress)
            case "stepped" | "evaluated":
                quarter = 4 * progress.step // progress.total_steps
                key = (progress.variant, progress.seed)
                if progress.stage == "evaluated" and quarter > self._quarters.get(key, 0):
                    self._quarters[key] = quarter
                    step = f"step {progress.step}/{progress.total_steps}"
                    self._say(f"{name}: {step}  {describe(progress)}")
            case "finished" | "skipped":
                self._ended += 1
                word = "done" if progress.stage == "finished" else "was done before"
                of = f" ({self._ended} of {self._trainings})" if self._trainings else ""
                self._say(f"{name}: {word}{of}")

    def _say_plan(self, progress: Progress) -> None:
        """The plan of a variant, once: it is the same for all its seeds."""
        if progress.variant not in self._planned:
            self._planned.add(progress.variant)
            for line in progress.plan.splitlines():
                self._say(f"  {progress.variant}: {line}")

    def _say(self, line: str) -> None:
        print(line, flush=True)


@contextmanager
def _bars(trainings: int | None) -> Iterator[OnProgress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with RichProgress(*columns) as bars:
        overall = bars.add_task("all trainings", total=trainings, words="")
        tasks = {}

        def take(progress: Progress) -> None:
            key = (progress.variant, progress.seed)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{key[0]} seed {key[1]}", total=None, words="")
            words = "done before" if progress.stage == "skipped" else describe(progress)
            bars.update(
                tasks[key], completed=progress.step, total=progress.total_steps, words=words
            )
            if progress.stage in ("finished", "skipped"):
                bars.advance(overall)

        yield take
