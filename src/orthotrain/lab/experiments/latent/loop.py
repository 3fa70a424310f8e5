"""One adversarial training from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import logging
import math
import statistics
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from orthotrain.disentangle import Evaluation
from orthotrain.errors import NonFiniteError
from orthotrain.lab.experiments.latent.build import (
    build_images,
    build_source,
    build_sprites,
    gram_deviation,
    latent_weights,
)
from orthotrain.lab.experiments.latent.config import LatentRun, LatentVariant
from orthotrain.lab.experiments.latent.image_score import BUDGETS, ImageGenerator, image_scores
from orthotrain.lab.experiments.latent.linear_score import linear_scores
from orthotrain.lab.experiments.latent.projected import projected, projected_directions
from orthotrain.lab.experiments.latent.samples import write_samples
from orthotrain.lab.experiments.latent.sources import GaussianSource
from orthotrain.lab.experiments.latent.state import AdversarialState, averaged, build_adversarial
from orthotrain.lab.experiments.latent.step import Losses, adversarial_step
from orthotrain.lab.experiments.latent.traversal_frames import write_traversals
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint
from orthotrain.lab.run.progress import OnProgress, Progress, Stage, ignore
from orthotrain.lab.run.record import MetricsFile, SeedFolder, read_metrics, saving, write_json
from orthotrain.lab.run.reproducibility import (
    peak_memory_bytes,
    reset_peak_memory,
    resolve_device,
)
from orthotrain.models.linear_gan import LinearGenerator

_logger = logging.getLogger("orthotrain")


def train_generator(
    variant: LatentVariant,
    seed: int,
    config: LatentRun,
    *,
    folder: SeedFolder,
    on_progress: OnProgress = ignore,
) -> dict[str, Any]:
    """Train one variant with one seed; go on from its checkpoint where there is one.

    Args:
        variant: What is done to the latent weight.
        seed: Of the initial weights and of all chance afterwards.
        config: The run.
        folder: Where metrics, samples, checkpoint and result go.
        on_progress: Told about every line of the record with losses.

    Returns:
        The content of result.json.

    Raises:
        NonFiniteError: A loss became NaN or infinite; the last checkpoint stays.
        CheckpointError: A checkpoint is damaged or cannot be written.
        DataError: Local data, or a package that images need, is missing.
    """
    device = resolve_device(config.device)
    source = build_source(config.data, device=device)
    with saving(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    state = build_adversarial(variant, seed, config, source=source, device=device)
    seconds_before, metrics_size = 0.0, 0
    if folder.checkpoint.exists():
        saved = load_checkpoint(folder.checkpoint)
        state.load_state_dict(saved["training"])
        seconds_before, metrics_size = saved["seconds"], saved["metrics_size"]
        _logger.info("%s goes on at step %d", folder.path, state.step)
    began, started = time.perf_counter(), state.step
    with MetricsFile(folder.metrics, size=metrics_size) as metrics:
        recorder = _Recorder(variant, seed, config, metrics=metrics, on_progress=on_progress)
        state.handle.on_record(recorder.take_record)
        recorder.tell("started", state.step, plan=state.handle.plan)
        while state.step < config.optim.steps:
            start = time.perf_counter()
            losses = adversarial_step(state, config)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            recorder.stepped(state, losses, ms=1000 * (time.perf_counter() - start), folder=folder)
            if _due(state.step, config.record.sample_every_steps, config):
                write_samples(state, folder.path / "samples", seed=seed)
                recorder.tell("evaluated", state.step)
            if _due(state.step, config.record.checkpoint_every_steps, config):
                _require_finite(state, folder)
                checkpoint = {
                    "training": state.state_dict(),
                    "seconds": seconds_before + time.perf_counter() - began,
                    "metrics_size": metrics.sync(),
                    "network": {
                        "family": config.family,
                        "model": asdict(config.model),
                        "shape": list(source.shape),
                    },
                }
                save_checkpoint(folder.checkpoint, checkpoint)
        metrics.sync()
    seconds = seconds_before + time.perf_counter() - began
    scores = _scores(state, config, folder=folder, seed=seed)
    result = {
        "variant": variant.name,
        "seed": seed,
        "scores": scores,
        **_times(folder, state, steps_here=state.step - started),
        "trainable": sum(p.numel() for p in state.generator.parameters()),
        "peak_rss_bytes": peak_memory_bytes(),
        "steps": config.optim.steps,
        "seconds": seconds,
        "settings": {"model": asdict(config.model), **variant.settings()},
    }
    state.handle.detach()
    if variant.name == config.baseline:
        scores |= _after_training(state, config, seed=seed)
    write_json(folder.result, result)
    recorder.tell("finished", state.step)
    return result


def _require_finite(state: AdversarialState, folder: SeedFolder) -> None:
    """Keep weights that are not finite out of the checkpoint: losses tell of them one step late."""
    for player, model in (("generator", state.generator), ("discriminator", state.discriminator)):
        for name, weight in model.named_parameters():
            if not bool(weight.isfinite().all()):
                raise NonFiniteError(
                    _broken(f"{name} of the {player}", "not finite", state, folder)
                )


def _broken(what: str, how: str, state: AdversarialState, folder: SeedFolder) -> str:
    return (
        f"train: {what} in {folder.path} is {how} at step {state.step}; its last checkpoint and "
        "all samples are kept; try a smaller --optim.lr, a larger --optim.r1 or another "
        "--optim.loss in a new --run-dir"
    )


class _Recorder:
    """Turns what happens into lines of metrics.jsonl and messages of progress."""

    def __init__(
        self,
        variant: LatentVariant,
        seed: int,
        config: LatentRun,
        *,
        metrics: MetricsFile,
        on_progress: OnProgress,
    ) -> None:
        self._variant = variant.name
        self._seed = seed
        self._config = config
        self._metrics = metrics
        self._on_progress = on_progress
        self._step_ms: list[float] = []
        self._last_ms: float | None = None
        self._loss: float | None = None

    def take_record(self, record: dict[str, Any]) -> None:
        """One record of an attached method."""
        if record.get("method") == "condition_monitor":
            kept = {key: value for key, value in record.items() if key != "method"}
            self._metrics.append("condition", **kept)
        else:
            self._metrics.append("method", **record)

    def stepped(
        self, state: AdversarialState, losses: Losses, *, ms: float, folder: SeedFolder
    ) -> None:
        """Both players took a step.

        Raises:
            NonFiniteError: A loss that is written down is not finite.
        """
        self._step_ms.append(ms)
        if _due(state.step, self._config.latent.monitor_every_steps, self._config):
            for layer, weight in latent_weights(state.generator):
                deviation = gram_deviation(weight)
                self._metrics.append(
                    "latent", step=state.step, layer=layer, gram_deviation=deviation
                )
        if not _due(state.step, self._config.record.log_every_steps, self._config):
            return
        values = {
            "loss": losses.generator.item(),
            "discriminator_loss": losses.discriminator.item(),
            "penalty": losses.penalty.item(),
        }
        self._loss, self._last_ms = values["loss"], statistics.median(self._step_ms)
        self._step_ms.clear()
        self._metrics.append(
            "step",
            step=state.step,
            **values,
            lr=state.optimizers[0].param_groups[0]["lr"],
            step_ms=self._last_ms,
        )
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            self._metrics.sync()
            raise NonFiniteError(_broken(broken[0], str(values[broken[0]]), state, folder))
        self.tell("stepped", state.step)

    def tell(self, stage: Stage, step: int, *, plan: str = "") -> None:
        """Pass a message on."""
        self._on_progress(
            Progress(
                variant=self._variant,
                seed=self._seed,
                stage=stage,
                step=step,
                total_steps=self._config.optim.steps,
                loss=self._loss,
                step_ms=self._last_ms,
                plan=plan,
            )
        )


def _due(step: int, every: int, config: LatentRun) -> bool:
    return step % every == 0 or step == config.optim.steps


def _scores(
    state: AdversarialState, config: LatentRun, *, folder: SeedFolder, seed: int
) -> dict[str, float]:
    """What variants are compared in; of images the whole evaluation goes into a file, too."""
    if isinstance(state.generator, LinearGenerator):
        assert isinstance(state.source, GaussianSource)
        return linear_scores(state.generator, state.source, seed=seed)
    model = averaged(state)
    assert not isinstance(model, LinearGenerator)
    scores, evaluation = _image_scores(model, config, seed=seed)
    write_json(folder.path / "evaluation.json", evaluation.to_dict())
    write_traversals(model, folder.path / "traversals.npz", seed=seed)
    return scores


def _image_scores(
    model: ImageGenerator, config: LatentRun, *, seed: int, directions: Tensor | None = None
) -> tuple[dict[str, float], Evaluation]:
    """The scores of a generator of images, against the test part of its data."""
    return image_scores(
        model,
        build_images(config.data, part="test"),
        sprites=build_sprites(config.data),
        budget=BUDGETS[config.scale],
        seed=seed,
        directions=directions,
    )


def _after_training(state: AdversarialState, config: LatentRun, *, seed: int) -> dict[str, float]:
    """Scores of the Householder projector, which goes on with this training and uses it up."""
    model = projected(state, config)
    directions = projected_directions(model)
    if isinstance(model, LinearGenerator):
        assert isinstance(state.source, GaussianSource)
        scores = linear_scores(model, state.source, seed=seed, directions=directions)
    else:
        scores, _ = _image_scores(model, config, seed=seed, directions=directions)
    kept = (
        *("alignment", "disentanglement", "completeness", "factor_spread", "vp", "ppl"),
        *("frechet", "encoder_r2", "mig"),
    )
    return {f"{name}_householder": scores[name] for name in kept if name in scores}


def _times(folder: SeedFolder, state: AdversarialState, *, steps_here: int) -> dict[str, Any]:
    """Median time of a step, and the share of it that each method's hooks took."""
    times = [line["step_ms"] for line in read_metrics(folder.metrics) if line["kind"] == "step"]
    median = statistics.median(times)
    # A run that goes on from its last checkpoint has no step of its own.
    measured = state.handle.seconds if steps_here > 0 else {}
    return {
        "step_ms": median,
        "shares": {name: 1000 * value / steps_here / median for name, value in measured.items()},
    }
