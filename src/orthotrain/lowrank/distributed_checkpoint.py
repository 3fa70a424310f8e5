"""The part of a ``torch.distributed.checkpoint`` that is a model's, by names and shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orthotrain.lowrank.names import names_in_every_form


def shapes_of_model(model: nn.Module, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, from its metadata: no value is read.

    A checkpoint holds more than the model, each part behind a prefix of its owner's choice. The
    model's part is the one that has most of its names.

    Args:
        model: Dense or low-rank.
        entries: ``read_metadata().state_dict_metadata``.

    Returns:
        Tensors on the meta device, without the prefix.
    """
    shapes = {
        name: torch.empty(size, device="meta")
        for name, entry in entries.items()
        if isinstance(size := getattr(entry, "size", None), torch.Size)
    }
    known = {*names_in_every_form(model)}
    found = Counter(
        name[:start]
        for name in shapes
        for start in (0, *(i + 1 for i, letter in enumerate(name) if letter == "."))
        if name[start:] in known
    )
    prefix = found.most_common(1)[0][0] if found else ""
    return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def is_metadata(entries: Mapping[str, Any]) -> bool:
    """Whether entries are those of a checkpoint's metadata, and not tensors."""
    return any(isinstance(getattr(e, "size", None), torch.Size) for e in entries.values())
