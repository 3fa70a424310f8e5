"""``orthotrain inspect``: layers, shapes, ranks, sizes and condition numbers of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orthotrain.cli.command import Command

if TYPE_CHECKING:
    from torch import Tensor

_HEADINGS = ("layer", "shape", "rank", "stored", "condition")


@dataclass(frozen=True)
class Layer:
    """One weight of a checkpoint.

    Attributes:
        name: Qualified name without the trailing ``.weight`` or factor.
        shape: ``(m, n)`` of one matrix; a convolution is ``(out, everything else)``.
        rank: Columns kept, the smaller side where dense.
        stored: Numbers of all its matrices.
        condition: Largest over smallest singular value, the worst of its matrices.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    stored: int
    condition: float


def run_inspect(command: Command) -> int:
    """Print one line a weight matrix, and the total."""
    from orthotrain.lab.run.restore import read_weights

    weights = read_weights(Path(command.arguments.checkpoint))
    layers = layers_of(weights)
    total = sum(tensor.numel() for tensor in weights.values())
    lines = [
        (
            layer.name,
            f"{layer.shape[0]}x{layer.shape[1]}",
            f"{layer.rank}/{min(layer.shape)}",
            f"{layer.stored:,}",
            f"{layer.condition:.3g}",
        )
        for layer in layers
    ]
    widths = [max(len(line[i]) for line in (_HEADINGS, *lines)) for i in range(len(_HEADINGS))]
    for line in (_HEADINGS, *lines):
        cells = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells))
    rest = total - sum(layer.stored for layer in layers)
    print(f"{total:,} numbers stored, {rest:,} of them outside these layers")
    return 0


def layers_of(weights: dict[str, Tensor]) -> list[Layer]:
    """Every weight matrix of a state dict, low-rank or dense, in order of the state dict.

    A key that ends in ``core`` with ``u`` and ``vh`` beside it is a low-rank weight; any other
    floating tensor named ``weight`` (or ending in ``_weight``) with two dimensions or more is a
    dense one.
    """
    layers = []
    for key, tensor in weights.items():
        stem = key.removesuffix("core")
        factors = [weights.get(stem + "u"), weights.get(stem + "vh")]
        if key.endswith("core") and None not in factors:
            layers.append(_low_rank(stem, tensor, factors))
        elif key.endswith("weight") and tensor.is_floating_point() and tensor.ndim > 1:
            layers.append(_dense(key, tensor))
    return layers


def _low_rank(stem: str, core: Tensor, factors: list[Tensor | None]) -> Layer:
    from orthotrain.linalg import condition_number

    u, vh = (factor for factor in factors if factor is not None)
    return Layer(
        name=stem.rstrip("._"),
        shape=(u.shape[-2], vh.shape[-1]),
        rank=core.shape[-1],
        stored=u.numel() + core.numel() + vh.numel(),
        condition=condition_number(core).max().item(),
    )


def _dense(key: str, weight: Tensor) -> Layer:
    from orthotrain.linalg import condition_number

    matrix = weight.flatten(1)
    return Layer(
        name=key.removesuffix("weight").rstrip("._"),
        shape=(matrix.shape[0], matrix.shape[1]),
        rank=min(matrix.shape),
        stored=weight.numel(),
        condition=condition_number(matrix).max().item(),
    )
