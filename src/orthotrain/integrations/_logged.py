"""What the callbacks add to a logger."""

from __future__ import annotations

from orthotrain.methods.handle import Handle


def logged(handle: Handle) -> dict[str, float]:
    """Sizes as shares of the dense model, and ranks over layers, by the names of a logger."""
    summary = handle.summary()
    total, ranks = summary.total, [row.rank for row in summary.rows if row.rank is not None]
    values = {"stored": total.stored / total.dense, "trainable": total.trainable / total.dense}
    if ranks:
        values |= {"rank_mean": sum(ranks) / len(ranks), "rank_least": min(ranks)}
    return {f"orthotrain/{name}": float(value) for name, value in values.items()}
