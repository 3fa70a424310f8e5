"""The one loop: a training from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch

from orthotrain.errors import NonFiniteError
from orthotrain.lab.run.checkpoint import save_checkpoint
from orthotrain.lab.run.config import Variant
from orthotrain.lab.run.progress import OnProgress, ignore
from orthotrain.lab.run.record import MetricsFile, SeedFolder, read_metrics, saving, write_json
from orthotrain.lab.run.recorder import Recorder
from orthotrain.lab.run.reproducibility import peak_memory_bytes, reset_peak_memory
from orthotrain.lab.run.resume import identity_of, resume
from orthotrain.lab.run.trainer import Ending, Trainer

_logger = logging.getLogger("orthotrain")


def train(
    trainer: Trainer,
    *,
    variant: Variant,
    seed: int,
    folder: SeedFolder,
    read_test: bool = True,
    on_progress: OnProgress = ignore,
) -> dict[str, Any]:
    """Train one variant with one seed; go on from its checkpoint where there is one.

    Args:
        trainer: What trains, at its step 0.
        variant: Its variant.
        seed: Its seed.
        folder: Where metrics, checkpoint, result and the trainer's own files go.
        read_test: Measure on the test part at the very end; False where settings are chosen.
        on_progress: Told about every line of the record with losses, and every evaluation.

    Returns:
        The content of result.json.

    Raises:
        NonFiniteError: A loss or a weight became NaN or infinite; the last checkpoint stays.
        CheckpointError: A checkpoint is damaged, is of another training or cannot be written.
    """
    with saving(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    seconds_before, metrics_size = 0.0, 0
    identity = identity_of(trainer, folder, variant=variant.name, seed=seed)
    if folder.checkpoint.exists():
        seconds_before, metrics_size = resume(trainer, folder.checkpoint, identity)
        _logger.info("%s goes on at step %d", folder.path, trainer.steps)
    began, started, cadence = time.perf_counter(), trainer.steps, trainer.cadence

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began

    with MetricsFile(folder.metrics, size=metrics_size) as metrics:
        recorder = Recorder(
            trainer, variant=variant.name, seed=seed, metrics=metrics, on_progress=on_progress
        )
        trainer.handle.on_record(recorder.take_record)
        recorder.started()
        while trainer.steps < trainer.total_steps:
            with recorder.timed_step():
                step = trainer.step()
            losses = recorder.stepped(step)
            _require_finite_losses(losses, trainer, folder)
            if due(trainer, cadence.evaluate):
                recorder.evaluated(trainer.evaluate(folder))
            if due(trainer, cadence.checkpoint):
                training = trainer.state_dict()
                _require_finite_weights(training, trainer, folder)
                checkpoint = {
                    "identity": identity,
                    "step": trainer.steps,
                    "training": training,
                    "seconds": seconds(),
                    "metrics_size": metrics.sync(),
                    "network": dict(trainer.network),
                }
                save_checkpoint(folder.checkpoint, checkpoint)
        metrics.sync()
    took = seconds()
    ending = Ending(
        folder, read_metrics(folder.metrics), steps_here=trainer.steps - started,
        read_test=read_test,
    )  # fmt: skip
    result = {
        "variant": variant.name,
        "seed": seed,
        **trainer.result(ending),
        "peak_rss_bytes": peak_memory_bytes(),
        "steps": trainer.total_steps,
        "seconds": took,
    }
    trainer.handle.detach()
    write_json(folder.result, result)
    recorder.finished(result)
    return result


def due(trainer: Trainer, every: int) -> bool:
    """Whether what happens every so many steps, and after the last one, happens now."""
    return trainer.steps % every == 0 or trainer.steps == trainer.total_steps


def _require_finite_losses(losses: dict[str, float], trainer: Trainer, folder: SeedFolder) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            what = f"the {name.replace('_', ' ')}"
            rate = f", learning rate {losses['lr']:.2g}" if "lr" in losses else ""
            raise NonFiniteError(_broken(what, str(value), trainer, folder, rate=rate))


def _require_finite_weights(training: dict[str, Any], trainer: Trainer, folder: SeedFolder) -> None:
    """Keep weights that are not finite out of the checkpoint: losses tell of them a step late."""
    for part, weights in training.items():
        # The state dict of a module is flat; those of optimizers and methods are not.
        if not isinstance(weights, dict):
            continue
        for name, weight in weights.items():
            floats = isinstance(weight, torch.Tensor) and weight.is_floating_point()
            if floats and not bool(weight.isfinite().all()):
                raise NonFiniteError(
                    _broken(f"{name} of the {part}", "not finite", trainer, folder)
                )


def _broken(what: str, how: str, trainer: Trainer, folder: SeedFolder, *, rate: str = "") -> str:
    return (
        f"train: {what} in {folder.path} is {how} at step {trainer.steps}{rate}; its last "
        "checkpoint is kept; try a smaller learning rate (such as --optim.lr) or --precision "
        "float32 in a new --run-dir"
    )
