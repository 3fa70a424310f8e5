"""What a cut costs at equal size: by weights alone, by inputs, by inputs and output gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from _measure import report
from orthotrain import StoredBudget, compress

SHARES = (0.75, 0.5, 0.35)


@dataclass(frozen=True)
class Case:
    """One trained model with what it is cut by and judged on.

    Attributes:
        name: Heads its column.
        model: Dense.
        data: Batches that the cut sees.
        held_out: Batches on which the output error is measured.
        loss: Of the model and a batch, by which the cut is chosen.
        score: Of the model on held-out data; lower is better.
    """

    name: str
    model: nn.Module
    data: Sequence[Any]
    held_out: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module], float]


def compare(
    title: str,
    cases: Sequence[Case],
    *,
    shares: Sequence[float] = SHARES,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Print a table: a row per size and way, in each cell the score above dense and the error.

    Args:
        title: Says what the score is.
        cases: One per column.
        shares: Of the whole model's numbers to store.
        settings: Of ``compress``, the same for each way.
    """
    base = {case.name: case.score(case.model) for case in cases}
    rows = [("1.00", "dense", *(f"{base[case.name]:.3f}" for case in cases))]
    beaten: list[str] = []
    for share in shares:
        scores: dict[str, list[float]] = {}
        for way in ("weights alone", "inputs", "inputs and gradients"):
            cells = []
            for case in cases:
                by = {} if way == "weights alone" else {"data": case.data}
                by |= {"loss": case.loss} if way == "inputs and gradients" else {}
                model = compress(
                    copy.deepcopy(case.model), rank=StoredBudget(share),
                    held_out=case.held_out, **by, **(settings or {}),
                )  # fmt: skip
                done = model.compression
                above = case.score(model) - base[case.name]
                scores.setdefault(way, []).append(above)
                error = f"{100 * done.output_error:.1f} %"
                cells.append(f"{above:+.3f} {error:>7} ({done.stored / done.stored_before:.3f})")
            rows.append((f"{share:.2f}", way, *cells))
        plain = scores.pop("weights alone")
        for way, ours in scores.items():
            better = sum(a < b for a, b in zip(ours, plain, strict=True))
            beaten.append(
                f"{share:.2f} stored: {way} beats weights alone in {better} of {len(ours)}"
            )
    report(title, ("stored", "cut by", *(case.name for case in cases)), rows)
    print("\n".join(beaten))
