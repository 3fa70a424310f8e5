"""The one loop: a training from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orthotrain.lab.run.checkpoint import save_checkpoint
from orthotrain.lab.run.config import Variant
from orthotrain.lab.run.finite import (
    finite_state,
    losses_of,
    require_finite_numbers,
)
from orthotrain.lab.run.progress import OnProgress, ignore
from orthotrain.lab.run.record import MetricsFile, SeedFolder, read_metrics, saving, write_json
from orthotrain.lab.run.recorder import Recorder
from orthotrain.lab.run.reproducibility import peak_memory_bytes, reset_peak_memory
from orthotrain.lab.run.resume import identity_of, resume
from orthotrain.lab.run.stop import Stopped, held_signals
from orthotrain.lab.run.team import ALONE, Team, join
from orthotrain.lab.run.trainer import Ending, Trainer


def train(  # noqa: PLR0913 - what a training has, by name
    trainer: Trainer,
    *,
    variant: Variant,
    seed: int,
    folder: SeedFolder,
    read_test: bool = True,
    on_progress: OnProgress = ignore,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Train one variant with one seed; go on from its checkpoint where there is one.

    Args:
        trainer: What trains, at its step 0.
        variant: Its variant.
        seed: Its seed.
        folder: Where metrics, checkpoint, result and the trainer's own files go.
        read_test: Measure on the test part at the very end; False where settings are chosen.
        on_progress: Told about every line of the record with losses, and every evaluation.
        team: The processes that train it together, of which this is the main one; the others
            call :func:`take_part`.

    Returns:
        The content of result.json.

    Raises:
        NonFiniteError: A loss, a weight or state became NaN or infinite; the last checkpoint stays.
        Stopped: SIGTERM or Ctrl-C came; the step was ended and a checkpoint written.
        CheckpointError: A checkpoint is damaged, is of another training or cannot be written.
        ConfigError: A team cannot train it.
    """
    with saving(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    identity = identity_of(trainer, folder, variant=variant.name, seed=seed)
    before = resume(trainer, folder, identity)
    team.wait()
    join(trainer, team, variant=variant.name)
    began, started, cadence = time.perf_counter(), trainer.steps, trainer.cadence

    def seconds() -> float:
        return before.seconds + time.perf_counter() - began

    with (
        MetricsFile(
            folder.metrics, size=before.metrics_size, digest=before.metrics_sha256
        ) as metrics,
        held_signals() as asked,
    ):
        recorder = Recorder(
            trainer, variant=variant.name, seed=seed, metrics=metrics, on_progress=on_progress
        )
        trainer.handle.on_record(recorder.take_record)
        recorder.started()
        while trainer.steps < trainer.total_steps:
            with recorder.timed_step():
                step = trainer.step()
            numbers: Mapping[str, Any] = recorder.stepped(step)
            stop = team.agreed(asked())
            saves = stop is not None or due(trainer, cadence.checkpoint)
            require_finite_numbers(numbers, trainer, folder.path)
            if due(trainer, cadence.evaluate):
                line = trainer.evaluate(folder)
                recorder.evaluated(line)
                require_finite_numbers(losses_of(line), trainer, folder.path)
            if saves:
                checkpoint = {
                    "identity": identity,
                    "step": trainer.steps,
                    "training": finite_state(trainer, folder.path),
                    "seconds": seconds(),
                    "metrics_size": metrics.sync(),
                    "metrics_sha256": metrics.digest(),
                    "network": dict(trainer.network),
                }
                # Not all steps are written down, and the losses of this one may not be.
                require_finite_numbers(step.values, trainer, folder.path)
                save_checkpoint(folder.checkpoint, checkpoint, keep=folder.previous_checkpoint)
            if stop is not None:
                break
        metrics.sync()
        if (stop := team.agreed(asked())) is not None:
            raise Stopped(stop)
    took = seconds()
    finite_state(trainer, folder.path)
    ending = Ending(
        folder, read_metrics(folder.metrics), steps_here=trainer.steps - started,
        read_test=read_test,
    )  # fmt: skip
    result = _result(trainer, ending, variant=variant.name, seed=seed, seconds=took)
    team.wait()
    recorder.finished(result)
    return result


def _result(
    trainer: Trainer, ending: Ending, *, variant: str, seed: int, seconds: float
) -> dict[str, Any]:
    """What result.json says; it is written."""
    result = {
        "variant": variant,
        "seed": seed,
        **trainer.result(ending),
        "peak_rss_bytes": peak_memory_bytes(),
        "steps": trainer.total_steps,
        "seconds": seconds,
    }
    require_finite_numbers(losses_of(result), trainer, ending.folder.path)
    trainer.handle.detach()
    write_json(ending.folder.result, result)
    return result


def take_part(
    trainer: Trainer, *, variant: Variant, seed: int, folder: SeedFolder, team: Team
) -> None:
    """The same training on a process that is not the main one: the steps alone, nothing written.

    Args:
        trainer: Built as on the main process.
        variant: Its variant.
        seed: Its seed.
        folder: That of the main process, which all processes can read.
        team: The processes that train it together.

    Raises:
        Stopped: SIGTERM or Ctrl-C came to one of the processes.
        CheckpointError: The checkpoint cannot be read here.
        ConfigError: A team cannot train it.
    """
    team.wait()  # The main process may have put the checkpoint before in place of a damaged one.
    resume(trainer, folder, identity_of(trainer, folder, variant=variant.name, seed=seed))
    join(trainer, team, variant=variant.name)
    with held_signals() as asked:
        while trainer.steps < trainer.total_steps:
            trainer.step()
            if team.agreed(asked()) is not None:
                break
        if (stop := team.agreed(asked())) is not None:
            raise Stopped(stop)
    trainer.handle.detach()
    team.wait()  # The next training may need the result.


def due(trainer: Trainer, every: int) -> bool:
    """Whether what happens every so many steps, and after the last one, happens now."""
    return trainer.steps % every == 0 or trainer.steps == trainer.total_steps
