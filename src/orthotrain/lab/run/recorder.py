"""What a training writes down about itself: losses, times, sizes, ranks, movements of bases."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from orthotrain.lab.run.config import Job
from orthotrain.lab.run.progress import OnProgress, Progress, Stage
from orthotrain.lab.run.record import MetricsFile, read_metrics
from orthotrain.lab.run.reproducibility import peak_memory_bytes
from orthotrain.methods.handle import Handle
from orthotrain.methods.summary import Row, Summary

# Which kind of line the records of a method become; those that are not here are events that may
# have changed the structure.
_KINDS = {
    "basis_stability": "stability",
    "condition_monitor": "condition",
    "nearest_orthogonal_gradient": "method",
    "optimal_learning_rate": "method",
}

# "At the end" of a run, for times, is its last tenth.
_FINAL_FRACTION = 0.1


class HasLossAndAccuracy(Protocol):
    """What an evaluation gives."""

    @property
    def loss(self) -> float:
        """Mean loss."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""


class Measurements:
    """Turns what happens in a training into lines of metrics.jsonl and messages of progress.

    Args:
        job: What is trained.
        metrics: Where lines go.
        handle: The attached methods; asked for sizes and ranks when they may have changed.
        steps_per_epoch: Optimizer steps an epoch.
        total_steps: Optimizer steps of the training.
        on_progress: Told about lines with loss or accuracy.
    """

    def __init__(
        self,
        job: Job,
        *,
        metrics: MetricsFile,
        handle: Handle,
        steps_per_epoch: int,
        total_steps: int,
        on_progress: OnProgress,
    ) -> None:
        self._job = job
        self._metrics = metrics
        self._handle = handle
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._on_progress = on_progress
        self._step_ms: list[float] = []
        self._structure_changed = False
        self._ranks: dict[str, tuple[int | None, str]] = {}
        self._rank_fraction: float | None = None
        self._accuracy: float | None = None
        self._last_step_ms: float | None = None
        self.last_loss = math.nan

    def started(self, step: int) -> None:
        """The training begins, or goes on, after ``step`` steps."""
        summary = self._handle.summary()
        if step == 0:
            self._write_sizes(step, summary)
            self._write_ranks(step, summary.rows, every=True)
        self._remember_ranks(summary.rows)
        self._tell("started", step, plan=self._handle.plan)

    def take_record(self, record: dict[str, Any]) -> None:
        """One record of an attached method."""
        method = str(record.get("method"))
        kind = _KINDS.get(method, "event")
        if kind == "event":
            self._metrics.append(kind, **record)
            self._structure_changed = True
            return
        kept = {key: value for key, value in record.items() if key != "method" or kind == "method"}
        self._metrics.append(kind, epoch=record["step"] / self._steps_per_epoch, **kept)

    @contextmanager
    def timed_step(self, device: torch.device) -> Iterator[None]:
        """Measure the wall time of one whole optimizer step, hooks included."""
        began = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._step_ms.append(1000 * (time.perf_counter() - began))

    def stepped(self, step: int, *, loss: Tensor, lr: float, every: int) -> bool:
        """An optimizer step ended; True when it was one that is written down."""
        if self._structure_changed or step == 1:  # the optimizer's state begins with a step
            self._structure_changed = False
            summary = self._handle.summary()
            self._write_sizes(step, summary)
            self._write_ranks(step, summary.rows, every=False)
        if step % every and step != self._total_steps:
            return False
        self.last_loss = loss.item()
        self._last_step_ms = statistics.median(self._step_ms)
        self._step_ms.clear()
        self._metrics.append(
            "step",
            step=step,
            epoch=step / self._steps_per_epoch,
            loss=self.last_loss,
            lr=lr,
            step_ms=self._last_step_ms,
        )
        self._tell("stepped", step)
        return True

    def evaluated(self, step: int, evaluation: HasLossAndAccuracy) -> None:
        """The validation part was looked at."""
        self._accuracy = evaluation.accuracy
        self._metrics.append(
            "eval",
            step=step,
            epoch=step / self._steps_per_epoch,
            split="validation",
            loss=evaluation.loss,
            accuracy=evaluation.accuracy,
        )
        if step == self._total_steps:
            summary = self._handle.summary()
            self._write_sizes(step, summary)
            self._write_ranks(step, summary.rows, every=True)
        self._tell("evaluated", step)

    def finished(self, accuracy: float) -> None:
        """The result is written."""
        self._accuracy = accuracy
        self._tell("finished", self._total_steps)

    def sizes_and_times(self, metrics: Path) -> dict[str, Any]:
        """Fields of the result that follow from the final model and the lines written so far."""
        summary = self._handle.summary()
        total = summary.total
        lines = read_metrics(metrics)
        switch = next(
            (line["step"] for line in lines if line["kind"] == "rank" and line["form"] != "dense"),
            None,
        )
        times = [(line["step"], line["step_ms"]) for line in lines if line["kind"] == "step"]
        dense = [ms for step, ms in times if switch is None or step <= switch]
        last = (1 - _FINAL_FRACTION) * self._total_steps
        final = [ms for step, ms in times if step > last]
        return {
            "trainable": total.trainable,
            "stored": total.stored,
            "stored_folded": total.stored - sum(map(_saved_by_folding, summary.rows)),
            "dense": total.dense,
            "weight_bytes": total.weight_bytes,
            "gradient_bytes": total.gradient_bytes,
            "state_bytes": total.state_bytes,
            "training_bytes": total.weight_bytes + total.gradient_bytes + total.state_bytes,
            "step_ms_dense_phase": statistics.median(dense) if dense else None,
            "step_ms_final": statistics.median(final) if final else None,
            "peak_rss_bytes": peak_memory_bytes(),
            "switch_step": switch,
        }

    def _write_sizes(self, step: int, summary: Summary) -> None:
        total = summary.total
        self._metrics.append(
            "size",
            step=step,
            trainable=total.trainable,
            stored=total.stored,
            dense=total.dense,
            weight_bytes=total.weight_bytes,
            gradient_bytes=total.gradient_bytes,
            state_bytes=total.state_bytes,
        )

    def _write_ranks(self, step: int, rows: tuple[Row, ...], *, every: bool) -> None:
        for row in rows:
            if every or self._ranks.get(row.name) != (row.rank, row.form):
                full = _full_rank(row)
                self._metrics.append(
                    "rank",
                    step=step,
                    layer=row.name,
                    rank=full if row.rank is None else row.rank,
                    full_rank=full,
                    form=row.form,
                    shape=[row.shape[0], math.prod(row.shape[1:])],
                )
        self._remember_ranks(rows)

    def _remember_ranks(self, rows: tuple[Row, ...]) -> None:
        self._ranks = {row.name: (row.rank, row.form) for row in rows}
        fractions = [1.0 if row.rank is None else row.rank / _full_rank(row) for row in rows]
        self._rank_fraction = statistics.fmean(fractions) if fractions else None

    def _tell(self, stage: Stage, step: int, *, plan: str = "") -> None:
        self._on_progress(
            Progress(
                variant=self._job.variant.name,
                seed=self._job.seed,
                stage=stage,
                step=step,
                total_steps=self._total_steps,
                loss=None if math.isnan(self.last_loss) else self.last_loss,
                accuracy=self._accuracy,
                rank=self._rank_fraction,
                step_ms=self._last_step_ms,
                plan=plan,
            )
        )


def _full_rank(row: Row) -> int:
    return min(row.shape[0], math.prod(row.shape[1:]))


def _saved_by_folding(row: Row) -> int:
    """Numbers saved when ``u @ core`` becomes one factor, or the layer dense if that is less."""
    if row.rank is None or row.form == "two factors":
        return 0
    return max(row.trainable, row.stored - row.dense)
