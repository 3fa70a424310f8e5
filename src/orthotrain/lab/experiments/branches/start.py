"""What a training begins with: a fresh network, or the finished dense one, cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import AdamW

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.steps import CUT_BATCHES
from orthotrain.lab.experiments.branches.variants import DENSE, BranchedVariant
from orthotrain.lab.run.compute import counting
from orthotrain.lab.run.record import read_json
from orthotrain.lab.run.restore import read_network
from orthotrain.lowrank import Branch, sizes
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.measure import LossFunction
from orthotrain.lowrank.sites import Selection, find_sites
from orthotrain.lowrank.tell import row_of
from orthotrain.methods.copies import frozen_copy
from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.summary import Row


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        model: What is trained, on its device.
        branch: The cut that made it of the finished dense model.
        cut_compute: Operations that measuring took, decompositions left out. Its time is no part
            of the training's.
        teacher: The finished dense model, where it teaches.
        compute_before: Operations of the dense training, where it was needed.
    """

    model: nn.Module
    branch: Branch | None = None
    cut_compute: int = 0
    teacher: nn.Module | None = None
    compute_before: int = 0

    def peak_rate(self, rate: float, *, steps: int, dense_steps: int) -> float:
        """The peak of the schedule: that of dense training, or what follows from the cut."""
        if self.branch is None:
            return rate
        return self.branch.rate(rate, steps=steps, dense_steps=dense_steps)

    def methods(self) -> list[Method]:
        """What tells the sizes of a network that is low-rank from the first step on."""
        return [] if self.branch is None else [CutAtStart()]


def start_of(
    variant: BranchedVariant,
    *,
    fresh: Callable[[], nn.Module],
    device: torch.device,
    next_batch: Callable[[], Any],
    loss: LossFunction,
) -> Start:
    """The finished dense model, cut, or a fresh one.

    Args:
        variant: Which of them, and whether there is a teacher.
        fresh: Makes a network with new weights.
        device: Where all of them go.
        next_batch: Gives the batches that a cut is decided on, before those of the training.
        loss: Of a model and such a batch.

    Raises:
        CheckpointError: The finished dense training is needed and its checkpoint is damaged.
        ConfigError: It is needed and was not named.
    """
    if variant.dense is None:
        if variant.needs == DENSE:
            raise ConfigError(
                f"variant {variant.name} is built from the finished {DENSE} training of its seed; "
                "train it in one run with that, or give its folder to with_trainings"
            )
        return Start(fresh().to(device))
    dense = read_network(variant.dense.checkpoint).to(device)
    before: int = read_json(variant.dense.result)["compute"]
    if variant.branch is None:
        return Start(
            fresh().to(device),
            teacher=frozen_copy(dense) if variant.teacher else None,
            compute_before=before,
        )
    assert variant.cut is not None
    assert variant.cut.stored is not None
    assert variant.cut.repaired
    assert variant.cut.bases == "trained"
    batches = [next_batch() for _ in range(CUT_BATCHES)]
    found = counted_branch(dense.train(), variant.cut.stored, batches=batches, loss=loss)
    teacher = found.branch.teacher if variant.teacher and found.branch else None
    return replace(found, teacher=teacher, compute_before=before)


def counted_branch(
    dense: nn.Module, share: float, *, batches: Sequence[Any], loss: LossFunction
) -> Start:
    """A finished model cut to a share of its numbers, and the operations that took.

    Checkpoints keep no optimizer, so the one that a branch is made with is fresh and not used.
    """
    cut: list[Branch] = []
    with counting() as counter:
        sizes(
            dense, AdamW(dense.parameters()), [share], train_on=cut.append, data=batches, loss=loss
        )
    return Start(cut[0].model, cut[0], counter.get_total_flops())


@dataclass(frozen=True)
class OwnRate:
    """AdamW of a training whose rate is its own.

    Attributes:
        lr: Peak learning rate.
        warmup_fraction: Share of its steps spent on the warm-up.
        weight_decay: Decoupled weight decay of matrices.
        min_lr: Learning rate of the last step.
    """

    lr: float
    warmup_fraction: float
    weight_decay: float
    min_lr: float = 0.0


@dataclass(frozen=True)
class CutAtStart(Method):
    """Gives the account of layers that were low-rank before training; changes nothing."""

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = "cut_at_start"

    def bind(self, run: Run) -> Bound:
        """Find the layers."""
        return _Account(run.model)


class _Account(Bound):
    def __init__(self, model: nn.Module) -> None:
        self._sites = find_sites(model, Selection())[0]

    def rows(self) -> list[Row]:
        return [row_of(site, LayerHistory()) for site in self._sites]
