"""``orthotrain inspect``: layers, shapes, ranks, sizes and condition numbers of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orthotrain.cli.command import Command
from orthotrain.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orthotrain.linalg.matrices import WeightLayout

_HEADINGS = ("layer", "shape", "rank", "stored", "condition")


@dataclass(frozen=True)
class Layer:
    """One weight of a checkpoint.

    Attributes:
        name: Qualified name without the trailing ``.weight`` or factor.
        layout: How it is read as matrices; of a low-rank weight, ``m`` and ``n`` of its product.
        rank: Columns kept, the smaller side where dense.
        stored: Numbers of all its matrices.
        condition: Largest over smallest singular value, the worst of its matrices.
    """

    name: str
    layout: WeightLayout
    rank: int
    stored: int
    condition: float


def run_inspect(command: Command) -> int:
    """Print one line per weight, and the total."""
    from orthotrain.lab.run.restore import read_weights

    path = Path(command.arguments.checkpoint)
    weights = read_weights(path)
    layers = layers_of(weights, _network_of(path))
    total = sum(tensor.numel() for tensor in weights.values())
    lines = [
        (
            layer.name,
            str(layer.layout),
            f"{layer.rank}/{layer.layout.full_rank}",
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


def _network_of(path: Path) -> nn.Module | None:
    """The network whose weights a file holds, where it is the checkpoint of a run."""
    if path.suffix == ".safetensors":
        return None
    from orthotrain.lab.run.restore import read_network

    try:
        return read_network(path)
    except CheckpointError as error:
        print(f"weights alone, so a convolution with groups is read as one matrix: {error}")
        return None


def layers_of(weights: dict[str, Tensor], model: nn.Module | None = None) -> list[Layer]:
    """Every weight matrix of a state dict, low-rank or dense, in order of the state dict.

    A key that ends in ``core`` with ``u`` and ``vh`` beside it is a low-rank weight, and so is one
    that ends in ``pair``, which holds two factors side by side. Where they part is known from
    the model, else from the bias beside it; else the condition is not a number. Any other
    floating tensor named ``weight`` (or ending in ``_weight``) with two dimensions or more is a
    dense one. Where the model is given, its layers say how a dense weight is read as matrices.
    Else names and shapes do, as far as they tell (``orthotrain.linalg.matrices.stored_layout``): a
    state dict does not hold the groups of a convolution.
    """
    owners = dict(model.named_modules(remove_duplicate=False)) if model is not None else {}
    layers = []
    for key, tensor in weights.items():
        stem = key.removesuffix("core")
        factors = [weights.get(stem + "u"), weights.get(stem + "vh")]
        if key.endswith("core") and None not in factors:
            layers.append(_low_rank(stem, tensor, factors))
        elif key.rpartition(".")[2].rpartition("_")[2] == "pair":
            owner = owners.get(key.rpartition(".")[0])
            layers.append(_pair(key, tensor, weights, owner))
        elif key.endswith("weight") and tensor.is_floating_point() and tensor.ndim > 1:
            owner = owners.get(key.rpartition(".")[0])
            layers.append(_dense(key, tensor, _layout(key, tensor, weights, owner)))
    return layers


def _low_rank(stem: str, core: Tensor, factors: list[Tensor | None]) -> Layer:
    from orthotrain.linalg import condition_number
    from orthotrain.linalg.matrices import WeightLayout

    u, vh = (factor for factor in factors if factor is not None)
    blocks, m, n = core.shape[:-2].numel(), u.shape[-2], vh.shape[-1]
    return Layer(
        name=stem.rstrip("._"),
        layout=WeightLayout((blocks * m, n), blocks, m, n),
        rank=core.shape[-1],
        stored=u.numel() + core.numel() + vh.numel(),
        condition=condition_number(core).max().item(),
    )


def _pair(key: str, pair: Tensor, weights: dict[str, Tensor], owner: nn.Module | None) -> Layer:
    from orthotrain.layers._factors import LowRankModule
    from orthotrain.linalg import condition_number
    from orthotrain.linalg.factor_pair import halves, orthonormal_form
    from orthotrain.linalg.matrices import WeightLayout

    stem = key.removesuffix("pair")
    blocks, rank, both = pair.shape[:-2].numel(), *pair.shape[-2:]
    bias = weights.get(stem + "bias")
    m, condition = 0, float("nan")
    if isinstance(owner, LowRankModule):
        m = owner.layout(owner, stem.rpartition(".")[2] + "weight").m
    elif bias is not None:
        m = len(bias) // blocks
    if 0 < m < both:
        _, core, _ = orthonormal_form(*halves(pair, m))
        condition = condition_number(core).max().item()
    return Layer(
        name=stem.rstrip("._"),
        layout=WeightLayout((blocks * m, both - m), blocks, m or rank, both - m),
        rank=rank,
        stored=pair.numel(),
        condition=condition,
    )


def _layout(
    key: str, weight: Tensor, weights: dict[str, Tensor], owner: nn.Module | None
) -> WeightLayout:
    from orthotrain.linalg.matrices import stored_layout, weight_layout

    stem, _, name = key.rpartition(".")
    if owner is not None:
        return weight_layout(owner, name, weight.shape)
    return stored_layout(key, weight.shape, weights.get(f"{stem}.bias" if stem else "bias"))


def _dense(key: str, weight: Tensor, layout: WeightLayout) -> Layer:
    from orthotrain.linalg import condition_number

    return Layer(
        name=key.removesuffix("weight").rstrip("._"),
        layout=layout,
        rank=layout.full_rank,
        stored=weight.numel(),
        condition=condition_number(layout.matrices(weight)).max().item(),
    )
