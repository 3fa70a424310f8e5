"""One training from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from orthotrain.data.batches import to_float
from orthotrain.data.splits import ImageData, Split
from orthotrain.errors import NonFiniteError
from orthotrain.lab.experiments.classifier.networks import describe_network
from orthotrain.lab.experiments.classifier.state import TrainingState, build_training
from orthotrain.lab.experiments.spectral.config import SpectralRun
from orthotrain.lab.experiments.spectral.measure import spectral_fields
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint
from orthotrain.lab.run.config import ClassifierRun, Job
from orthotrain.lab.run.progress import OnProgress, ignore
from orthotrain.lab.run.record import MetricsFile, SeedFolder, saving, write_json
from orthotrain.lab.run.recorder import Measurements
from orthotrain.lab.run.reproducibility import reset_peak_memory

_logger = logging.getLogger("orthotrain")
# Evaluation keeps no activations, so a batch only has to fit the memory: this many images of 32
# by 32 pixels, fewer larger ones.
_EVALUATION_BATCH = 1000
_EVALUATION_PIXELS = _EVALUATION_BATCH * 32 * 32


def train(
    job: Job,
    config: ClassifierRun,
    *,
    folder: SeedFolder,
    data: ImageData,
    read_test: bool = True,
    on_progress: OnProgress = ignore,
) -> dict[str, Any]:
    """Train one variant with one seed; go on from its checkpoint where there is one.

    Args:
        job: What to train.
        config: Everything else about the run.
        folder: Where metrics, checkpoint and result go.
        data: Images, on the device that trains.
        read_test: Measure on the test part at the very end; False where settings are chosen.
        on_progress: Told about every line of the record with a loss or an accuracy.

    Returns:
        The content of result.json.

    Raises:
        NonFiniteError: The training loss became NaN or infinite.
        CheckpointError: A checkpoint is damaged or cannot be written.
    """
    with saving(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    state = build_training(job, config, data=data)
    seconds_before, metrics_size = 0.0, 0
    if folder.checkpoint.exists():
        saved = load_checkpoint(folder.checkpoint)
        state.load_state_dict(saved["training"])
        seconds_before, metrics_size = saved["seconds"], saved["metrics_size"]
        _logger.info("%s goes on at step %d", folder.path, state.step)
    began, started = time.perf_counter(), state.step

    with MetricsFile(folder.metrics, size=metrics_size) as metrics:
        measure = Measurements(
            job,
            metrics=metrics,
            handle=state.handle,
            steps_per_epoch=state.steps_per_epoch,
            total_steps=state.total_steps,
            on_progress=on_progress,
        )
        state.handle.on_record(measure.take_record)
        measure.started(state.step)
        while state.step < state.total_steps:
            with measure.timed_step(data.train.labels.device):
                loss, lr = _train_step(state, config)
            if measure.stepped(state.step, loss=loss, lr=lr, every=config.record.log_every_steps):
                _require_finite(measure.last_loss, folder=folder, step=state.step, lr=lr)
            if _due(state, every_epochs=config.record.eval_every_epochs):
                measure.evaluated(state.step, evaluate(state.model, data.validation))
            if _due(state, every_epochs=config.record.checkpoint_every_epochs):
                checkpoint = {
                    "training": state.state_dict(),
                    "seconds": seconds_before + time.perf_counter() - began,
                    "metrics_size": metrics.sync(),
                    "network": describe_network(
                        job, config, image_shape=data.image_shape, classes=data.classes
                    ),
                }
                save_checkpoint(folder.checkpoint, checkpoint)
        metrics.sync()
        seconds = seconds_before + time.perf_counter() - began

        validation = evaluate(state.model, data.validation)
        test = evaluate(state.model, data.read_test()) if read_test else None
        result = {
            "variant": job.variant.name,
            "seed": job.seed,
            "validation_accuracy": validation.accuracy,
            "validation_loss": validation.loss,
            "test_accuracy": None if test is None else test.accuracy,
            "test_loss": None if test is None else test.loss,
            **(sizes := measure.sizes_and_times(folder.metrics)),
            **_family_fields(state, config, sizes, steps_here=state.step - started),
            "steps": state.total_steps,
            "seconds": seconds,
            "settings": {"model": asdict(job.model), **job.variant.settings()},
        }
    state.handle.detach()
    write_json(folder.result, result)
    measure.finished(validation.accuracy)
    return result


def _train_step(state: TrainingState, config: ClassifierRun) -> tuple[Tensor, float]:
    """One optimizer step; the loss before it, still on its device, and its learning rate."""
    images, labels = state.batches.next_batch()
    half = config.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        scores = state.model(images)
    loss = F.cross_entropy(scores.float(), labels, label_smoothing=config.optim.label_smoothing)
    state.handle.observe(loss.detach())
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    if config.optim.clip_norm is not None:
        clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)
    lr = float(state.optimizer.param_groups[0]["lr"])
    state.optimizer.step()
    state.scheduler.step()
    state.step += 1
    return loss.detach(), lr


def _family_fields(
    state: TrainingState, config: ClassifierRun, sizes: dict[str, Any], *, steps_here: int
) -> dict[str, Any]:
    """What only one family of experiments tells about its end."""
    if not isinstance(config, SpectralRun):
        return {}
    return spectral_fields(
        state.model,
        config.spectral,
        handle=state.handle,
        steps_here=steps_here,
        step_seconds=sizes["step_ms_final"] / 1000,
        batch_size=config.data.batch_size,
    )


def _due(state: TrainingState, *, every_epochs: int) -> bool:
    epoch, rest = divmod(state.step, state.steps_per_epoch)
    return state.step == state.total_steps or (rest == 0 and epoch % every_epochs == 0)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (a fraction) over a part of the data."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> Evaluation:
    """Loss and accuracy of ``model`` on all of ``split``, in float32, in evaluation mode."""
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    pixels = split.images.shape[-2] * split.images.shape[-1]
    size = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // pixels))
    for start in range(0, len(split), size):
        images = to_float(split.images[start : start + size])
        labels = split.labels[start : start + size]
        scores: Tensor = model(images)
        loss += F.cross_entropy(scores, labels, reduction="sum").double()
        right += (scores.argmax(dim=1) == labels).sum()
    model.train()
    return Evaluation(loss=loss.item() / len(split), accuracy=right.item() / len(split))


def _require_finite(loss: float, *, folder: SeedFolder, step: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"train: the loss of {folder.path} is {loss} at step {step} (learning rate {lr:.2g}); "
            "try a smaller --optim.lr, a smaller --optim.clip_norm or --precision float32 in a "
            "new --run-dir"
        )
