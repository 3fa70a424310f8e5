"""Nothing that is not finite is kept: the last good checkpoint stays, and no result is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from orthotrain.errors import NonFiniteError
from orthotrain.lab.run.trainer import Trainer

# A number whose name ends so is a loss: validation_loss, test_bits.
_LOSSES: Final = ("loss", "bits")


def finite_state(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """The state of a training; raises NonFiniteError where a tensor in it, at any depth, is not.

    Losses tell of it a step late, and a loss is not read at every step.
    """
    training = trainer.state_dict()
    for part, value in training.items():
        for name, tensor in _tensors(value):
            floats = tensor.is_floating_point() or tensor.is_complex()
            if floats and not bool(tensor.isfinite().all()):
                what = f"{name} of the {part}" if name else f"the {part}"
                raise NonFiniteError(_broken(what, "not finite", trainer, folder))
    return training


def require_finite_numbers(values: Mapping[str, Any], trainer: Trainer, folder: Path) -> None:
    """Raise NonFiniteError where one of these numbers is not finite."""
    for name, value in values.items():
        number = float(value) if isinstance(value, float | torch.Tensor) else 0.0
        if not math.isfinite(number):
            what = f"the {name.replace('_', ' ')}"
            rate = f", learning rate {float(values['lr']):.2g}" if "lr" in values else ""
            raise NonFiniteError(_broken(what, str(number), trainer, folder, rate=rate))


def losses_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of named numbers that are losses. A score may have no value, and then is NaN."""
    return {k: value for k, value in values.items() if k.rpartition("_")[2] in _LOSSES}


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a nested state, with the names that lead to it."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    entries: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    for key, entry in entries:
        yield from _tensors(entry, f"{name}.{key}" if name else str(key))


def _broken(what: str, how: str, trainer: Trainer, folder: Path, *, rate: str = "") -> str:
    kept = "its last checkpoint is kept" if any(folder.glob("*.pt")) else "nothing of it was saved"
    return (
        f"train: {what} in {folder} is {how} at step {trainer.steps}{rate}; {kept}; try a "
        "smaller learning rate (such as --optim.lr) or --precision float32 in a new --run-dir"
    )
