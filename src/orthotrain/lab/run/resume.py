"""Whose checkpoint it is, and going on from it: nothing is taken before all of it was checked."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from orthotrain.data.lazy import ImageArray
from orthotrain.errors import CheckpointError, OrthotrainError, OrthotrainWarning
from orthotrain.lab.run.checkpoint import SCHEMA, load_checkpoint
from orthotrain.lab.run.record import SeedFolder, differences, saving
from orthotrain.lab.run.trainer import Trainer
from orthotrain.lowrank.verified import bytes_of

_logger = logging.getLogger("orthotrain")

# Images that are decoded when they are asked for: so many of them stand for all.
_SAMPLED: Final = 64


@runtime_checkable
class OnData(Protocol):
    """A trainer that tells which data it trains on."""

    @property
    def data_fingerprint(self) -> str:
        """The same for the same data, another one for other images, texts or labels."""


def fingerprint(*parts: Tensor | ImageArray) -> str:
    """SHA-256, in hexadecimal, of the values, shapes and dtypes of these arrays, in their order.

    Of images that are decoded on demand, 64 evenly spaced ones count.
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(json.dumps([str(part.dtype), list(part.shape)]).encode())
        if not isinstance(part, Tensor):
            count = len(part)
            part = part[torch.linspace(0, count - 1, min(_SAMPLED, count)).long()]
        found.update(bytes_of(part))
    return found.hexdigest()


def identity_of(trainer: Trainer, folder: SeedFolder, *, variant: str, seed: int) -> dict[str, Any]:
    """What a checkpoint says of the training that it belongs to, plain values.

    Args:
        trainer: What trains.
        folder: Its folder, with the settings of the run.
        variant: Name of its variant.
        seed: Its seed.
    """
    return {
        "variant": variant,
        "seed": seed,
        "settings": dict(folder.settings),
        "data": trainer.data_fingerprint if isinstance(trainer, OnData) else None,
    }


@dataclass(frozen=True)
class Before:
    """What a training did before it was stopped.

    Attributes:
        seconds: That it took.
        metrics_size: Bytes of its metrics.
        metrics_sha256: Of these bytes; None in a checkpoint of an earlier version.
    """

    seconds: float = 0.0
    metrics_size: int = 0
    metrics_sha256: str | None = None


def resume(trainer: Trainer, folder: SeedFolder, identity: Mapping[str, Any]) -> Before:
    """Go on from the last checkpoint, or from the one before where the last is damaged.

    Args:
        trainer: At its step 0, where it stays without a checkpoint.
        folder: Of the training.
        identity: What the checkpoint must say of itself.

    Returns:
        How far it came.

    Raises:
        CheckpointError: Both are damaged, or what is there is of another training, incomplete or
            impossible.

    Warns:
        OrthotrainWarning: The last one is damaged or missing.
    """
    last, previous = folder.checkpoint, folder.previous_checkpoint
    if not last.exists() and not previous.exists():
        return Before()
    path, damage = last, None
    try:
        saved = load_checkpoint(last)
    except CheckpointError as error:
        if not previous.exists():
            raise
        path, damage = previous, error
        saved = load_checkpoint(previous)
    progress = _go_on(trainer, saved, path, identity)
    if damage is not None:
        with saving(folder.path):
            if last.exists():
                # The next save must not put it in the place of the one before.
                os.replace(last, folder.damaged_checkpoint)
            os.replace(previous, last)
        warnings.warn(
            f"the last checkpoint cannot be taken ({damage}); the training goes on from the one "
            f"before, {previous.name}, at step {trainer.steps}",
            OrthotrainWarning,
            stacklevel=3,
        )
    _logger.info("%s goes on at step %d", folder.path, trainer.steps)
    return progress


def _go_on(
    trainer: Trainer, saved: Mapping[str, Any], path: Path, identity: Mapping[str, Any]
) -> Before:
    _require(saved, path, "training", lambda value: isinstance(value, dict), "a dictionary")
    _require(saved, path, "seconds", _is_duration, "a number of seconds")
    _require(saved, path, "metrics_size", _is_count, "a number of bytes")
    digest = saved.get("metrics_sha256")
    total = trainer.total_steps
    if saved["schema"] == SCHEMA:
        _require(saved, path, "identity", lambda value: isinstance(value, dict), "a dictionary")
        if changed := differences(saved["identity"], dict(identity)):
            raise CheckpointError(
                f"{path} is the checkpoint of another training: {'; '.join(changed[:4])}; put it "
                "back where it belongs, or delete its folder to train this seed from its start"
            )
        _require(
            saved, path, "step", lambda value: _is_count(value) and value <= total,
            f"a step from 0 to {total}",
        )  # fmt: skip
    else:
        _logger.warning(
            "%s is of an earlier version and does not say whose it is: taken as the checkpoint of "
            "%s with seed %d", path, identity["variant"], identity["seed"],
        )  # fmt: skip
    try:
        trainer.load_state_dict(saved["training"])
    except OrthotrainError:
        raise
    except Exception as error:  # a trainer of another family raises whatever it misses
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            f"{path} does not fit this training ({type(error).__name__}: {reason}); another "
            "version or family wrote it. Use that version, or delete its folder to train this "
            "seed from its start"
        ) from error
    steps: object = trainer.steps
    if not (_is_count(steps) and trainer.steps <= total and steps == saved.get("step", steps)):
        raise CheckpointError(
            f"{path} says that {trainer.steps} steps are done and its training has {total}; delete "
            "its folder to train this seed from its start"
        )
    return Before(
        float(saved["seconds"]), int(saved["metrics_size"]), None if digest is None else str(digest)
    )


def _require(
    saved: Mapping[str, Any], path: Path, name: str, right: Callable[[Any], bool], need: str
) -> None:
    if name not in saved or not right(saved[name]):
        found = repr(saved[name])[:40] if name in saved else "nothing"
        raise CheckpointError(
            f"{path} has {found} for {name!r}, need {need}; another version wrote it. Use that "
            "version, or delete its folder to train this seed from its start"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
