"""What ``sizes`` gives: one branch per size, and the table of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from orthotrain.lowrank.compression_report import Compression
from orthotrain.lowrank.rate import rate_after_cut


@dataclass(eq=False)
class Branch:
    """One size: a copy of the dense start and its optimizer, cut, then trained on.

    Attributes:
        share: What was asked for: the share of the dense model's numbers to store.
        model: The copy, its layers two trained factors each where that is smaller.
        optimizer: The copy's own, state in the new coordinates. Groups and learning rates are as
            the original's were; there is no scheduler.
        teacher: The dense start, frozen, for ``teacher_loss``; one for all branches.
        compression: What the cut did to each layer; on the model as ``.compression``, too.
        lost: The cut's estimated loss, as a share of what cutting everything would lose: by the
            measure that chose the ranks.
        loss_before: Mean loss of the dense start on the data, in evaluation mode; None without
            data and a loss.
        loss_after: The same of the branch right after its cut.
        final_loss: What ``train_on`` returned.
        steps: Optimizer steps that ``train_on`` took.
        seconds: Wall-clock seconds that ``train_on`` took.
        operations: Floating-point operations of ``train_on``, where they were counted.
    """

    share: float
    model: nn.Module
    optimizer: Optimizer
    teacher: nn.Module
    compression: Compression
    lost: float
    loss_before: float | None
    loss_after: float | None
    final_loss: float | None = None
    steps: int = 0
    seconds: float = 0.0
    operations: int | None = None

    def rate(self, peak: float, *, steps: int, dense_steps: int) -> float:
        """Peak learning rate for ``steps`` steps of training: :func:`rate_after_cut`."""
        return rate_after_cut(
            peak, steps=steps, dense_steps=dense_steps,
            loss_before=self.loss_before, loss_after=self.loss_after,
        )  # fmt: skip


@dataclass(eq=False)
class Sizes:
    """The trained branches, in the order of the shares. ``print`` shows a table.

    Attributes:
        branches: One for each share.
        dense_stored: Numbers that the dense start holds.
        dense_loss: Its mean loss on the data; None without data and a loss.
    """

    dense_stored: int
    dense_loss: float | None
    branches: list[Branch] = field(default_factory=list)

    def __str__(self) -> str:
        counted = any(b.operations is not None for b in self.branches)
        head = ["share", "stored", "of start", "after cut", "trained", "steps", "seconds"]
        rows = [head + ["operations"] * counted]
        whole = ["start", f"{self.dense_stored:,}", "100.0 %", _number(self.dense_loss)]
        rows.append(whole + ["-"] * (3 + counted))
        for b in self.branches:
            stored = b.compression.stored
            row = [f"{b.share:g}", f"{stored:,}", f"{100 * stored / self.dense_stored:.1f} %"]
            row += [_number(b.loss_after), _number(b.final_loss), f"{b.steps:,}"]
            row += [f"{b.seconds:.1f}"]
            operations = "-" if b.operations is None else f"{b.operations:.3g}"
            rows.append(row + [operations] * counted)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        chosen = {b.compression.importance for b in self.branches}
        missing = {"weight": "data and a loss", "input": "a loss"}
        lines += [
            f"ranks by {each}; with {missing[each]} they follow what the loss feels"
            for each in sorted(chosen & set(missing))
        ]
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
