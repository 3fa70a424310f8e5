"""What a training writes down while it runs: losses, times, sizes, ranks, records of methods."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from orthotrain.diagnostics.writers import full_rank, line_of, rank_fields, size_fields
from orthotrain.lab.run.progress import OnProgress, Progress, Stage
from orthotrain.lab.run.record import MetricsFile
from orthotrain.lab.run.trainer import Line, Step, Trainer
from orthotrain.methods.summary import Row, Summary


class Recorder:
    """Turns what happens in a training into lines of metrics.jsonl and messages of progress.

    Args:
        trainer: What trains; its methods are asked for sizes when they may have changed.
        variant: Name of its variant.
        seed: Its seed.
        metrics: Where lines go.
        on_progress: Told about lines with losses or an evaluation.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        variant: str,
        seed: int,
        metrics: MetricsFile,
        on_progress: OnProgress,
    ) -> None:
        self._trainer = trainer
        self._name = (variant, seed)
        self._metrics = metrics
        self._on_progress = on_progress
        self._step_ms: list[float] = []
        self._structure_changed = False
        self._ranks: dict[str, tuple[int | None, str]] = {}
        self._rank_fraction: float | None = None
        self._accuracy: float | None = None
        self._last_step_ms: float | None = None
        self._loss: float | None = None

    def started(self) -> None:
        """The training begins, or goes on."""
        if self._trainer.cadence.sizes:
            summary = self._trainer.handle.summary()
            if self._trainer.steps == 0:
                self._write_sizes(summary, every=True)
            self._remember_ranks(summary.rows)
        self._tell("started", plan=self._trainer.handle.plan)

    def take_record(self, record: Mapping[str, Any]) -> None:
        """One record of an attached method."""
        line = line_of(record)
        kind = line.pop("kind")
        if "event" in line:  # of a change of sizes and ranks, at a step that it gives
            self._structure_changed = True
            self._metrics.append(kind, **line)
            return
        self._metrics.append(kind, **self._epoch(record.get("step")), **line)

    @contextmanager
    def timed_step(self) -> Iterator[None]:
        """Measure the wall time of one whole optimizer step, hooks included."""
        began = time.perf_counter()
        yield
        if self._trainer.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.device)
        self._step_ms.append(1000 * (time.perf_counter() - began))

    def stepped(self, step: Step) -> dict[str, float]:
        """An optimizer step ended; its numbers where they are written down, else nothing."""
        now, cadence = self._trainer.steps, self._trainer.cadence
        # The optimizer's state begins with the first step.
        if cadence.sizes and (self._structure_changed or now == 1):
            self._structure_changed = False
            self._write_sizes(self._trainer.handle.summary(), every=False)
        for line in step.lines:
            self._append(**line)
        if now % cadence.log and now != self._trainer.total_steps:
            return {}
        values = {name: float(value) for name, value in step.values.items()}
        self._loss = values.get("loss")
        self._last_step_ms = statistics.median(self._step_ms)
        self._step_ms.clear()
        self._append("step", **values, step_ms=self._last_step_ms)
        self._tell("stepped")
        return values

    def evaluated(self, line: Line) -> None:
        """The model was looked at."""
        if line:
            self._accuracy = line.get("accuracy")
            self._append("eval", **line)
        if self._trainer.cadence.sizes and self._trainer.steps == self._trainer.total_steps:
            self._write_sizes(self._trainer.handle.summary(), every=True)
        self._tell("evaluated", looked=line)

    def finished(self, result: Mapping[str, Any]) -> None:
        """The result is written."""
        self._accuracy = result.get("validation_accuracy")
        self._tell("finished")

    def _append(self, kind: str, **fields: Any) -> None:
        now = self._trainer.steps
        self._metrics.append(kind, step=now, **self._epoch(now), **fields)

    def _epoch(self, step: int | None) -> dict[str, float]:
        epoch = self._trainer.cadence.epoch
        return {} if epoch is None or step is None else {"epoch": step / epoch}

    def _write_sizes(self, summary: Summary, *, every: bool) -> None:
        step = self._trainer.steps
        self._metrics.append("size", step=step, **size_fields(summary))
        for row in summary.rows:
            if every or self._ranks.get(row.name) != (row.rank, row.form):
                self._metrics.append("rank", step=step, **rank_fields(row))
        self._remember_ranks(summary.rows)

    def _remember_ranks(self, rows: tuple[Row, ...]) -> None:
        self._ranks = {row.name: (row.rank, row.form) for row in rows}
        fractions = [1.0 if row.rank is None else row.rank / full_rank(row) for row in rows]
        self._rank_fraction = statistics.fmean(fractions) if fractions else None

    def _tell(self, stage: Stage, *, plan: str = "", looked: Line | None = None) -> None:
        variant, seed = self._name
        self._on_progress(
            Progress(
                variant=variant,
                seed=seed,
                stage=stage,
                step=self._trainer.steps,
                total_steps=self._trainer.total_steps,
                loss=self._loss,
                accuracy=self._accuracy,
                rank=self._rank_fraction,
                step_ms=self._last_step_ms,
                plan=plan,
                looked=looked or {},
            )
        )
