"""What a run's weights, gradients and optimizer state take, as rows and totals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.methods.optimizer_state import state_bytes

Form = Literal["dense", "factored", "materialized", "two factors"]

_HEADINGS = ("layer", "shape", "rank", "trainable", "stored", "dense", "form", "note")
_LEFT = {"layer", "form", "note"}


@dataclass(frozen=True)
class Row:
    """One weight, without its bias.

    Attributes:
        name: Qualified name of the module, wrapper prefixes removed.
        shape: Shape of the dense weight.
        rank: Rank of the low-rank form, ``None`` while dense.
        trainable: Numbers that are trained.
        stored: Numbers that are kept: the trained ones and the frozen factors.
        dense: Numbers in the dense weight.
        form: ``"factored"`` multiplies by the factors one after the other,
            ``"materialized"`` builds the weight first, both with frozen bases. ``"two factors"``
            has two factors, both trained: ``trainable`` and ``stored`` are equal.
        note: Anything worth a few words, such as why a layer stays dense.
        buffers: How many of ``stored`` lie in buffers. ``None`` means
            ``stored - trainable`` for a low-rank form and 0 for a dense one; give it when the
            core itself is frozen.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    trainable: int
    stored: int
    dense: int
    form: Form
    note: str = ""
    buffers: int | None = None

    @property
    def frozen_factors(self) -> int:
        """Numbers of ``stored`` that are no parameter."""
        if self.buffers is not None:
            return self.buffers
        return 0 if self.form == "dense" else self.stored - self.trainable


@dataclass(frozen=True)
class Total:
    """The whole model: counts of numbers, and measured bytes.

    Attributes:
        trainable: Numbers in parameters that require a gradient.
        stored: Numbers in all parameters and frozen factors.
        dense: What ``stored`` would be with every weight dense.
        weight_bytes: All parameters and buffers.
        gradient_bytes: Gradients that exist now; where none does, what the next backward pass
            will allocate for a parameter that requires one.
        state_bytes: Tensors in the state of the optimizers.
    """

    trainable: int
    stored: int
    dense: int
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Summary:
    """Rows, totals and notes; ``print`` shows them as a table.

    Attributes:
        rows: One per weight that a method gives an account of.
        total: The whole model, layers without a row included.
        notes: Sentences of the methods.
    """

    rows: tuple[Row, ...]
    total: Total
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Rows, totals and notes as plain numbers, texts, lists and dicts."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @property
    def short(self) -> str:
        """A few words for a progress bar: sizes beside dense, and the ranks."""
        total = self.total
        ranks = [row.rank for row in self.rows if row.rank is not None]
        least, most = min(ranks, default=0), max(ranks, default=0)
        of_layers = f", rank {least}" + f" to {most}" * (most > least) if ranks else ""
        return (
            f"stored {_percent(total.stored, total.dense)}, "
            f"trainable {_percent(total.trainable, total.dense)}{of_layers}"
        )

    def __str__(self) -> str:
        total = self.total
        lines = _table(self.rows) if self.rows else []
        lines += [
            f"trainable {total.trainable:,} of {total.dense:,}"
            f" ({_percent(total.trainable, total.dense)}), "
            f"stored {total.stored:,} ({_percent(total.stored, total.dense)})",
            f"memory: weights {_bytes(total.weight_bytes)}, "
            f"gradients {_bytes(total.gradient_bytes)}, "
            f"optimizer state {_bytes(total.state_bytes)}",
        ]
        return "\n".join([*lines, *self.notes])


def summarize(
    model: nn.Module,
    *optimizers: Optimizer,
    rows: Iterable[Row] = (),
    notes: Sequence[str] = (),
) -> Summary:
    """Count and measure ``model`` and its optimizers; ``rows`` tell which buffers are factors."""
    rows = tuple(rows)
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    numbers = sum(p.numel() for p in parameters)
    total = Total(
        trainable=sum(p.numel() for p in trained),
        stored=numbers + sum(row.frozen_factors for row in rows),
        dense=numbers + sum(row.dense - (row.stored - row.frozen_factors) for row in rows),
        weight_bytes=sum(_nbytes(t) for t in chain(parameters, model.buffers())),
        gradient_bytes=sum(_nbytes(p if p.grad is None else p.grad) for p in trained),
        state_bytes=sum(map(state_bytes, optimizers)),
    )
    return Summary(rows=rows, total=total, notes=tuple(notes))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name or "(model)",
        "x".join(str(size) for size in row.shape),
        "-" if row.rank is None else str(row.rank),
        f"{row.trainable:,} {_percent(row.trainable, row.dense):>6}",
        f"{row.stored:,} {_percent(row.stored, row.dense):>6}",
        f"{row.dense:,}",
        row.form,
        row.note,
    )


def _table(rows: Sequence[Row]) -> list[str]:
    """Aligned columns under a ruled heading; a column without any entry is left out."""
    columns = [
        (heading, cells)
        for heading, *cells in zip(_HEADINGS, *map(_cells, rows), strict=True)
        if any(cells)
    ]
    padded = []
    for heading, cells in columns:
        width = max(len(text) for text in (heading, *cells))
        left = heading in _LEFT
        padded.append(
            [
                text.ljust(width) if left else text.rjust(width)
                for text in (heading, "-" * width, *cells)
            ]
        )
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
