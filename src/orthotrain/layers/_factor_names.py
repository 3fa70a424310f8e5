"""Names of what a weight is held in: ``q_proj_weight`` gives ``q_proj_pair``.

A recurrent layer has ``weight_`` in front, and what it is held in ends like all others:
``weight_ih_l0`` gives ``ih_l0_pair``, or ``ih_l0_u``, ``ih_l0_core`` and ``ih_l0_vh``.
"""

from __future__ import annotations


def factor_names(weight: str) -> tuple[str, str, str]:
    """Names of ``u``, ``core`` and ``vh`` of a weight: ``q_proj_weight`` gives ``q_proj_u``..."""
    stem = _stem(weight)
    return f"{stem}u", f"{stem}core", f"{stem}vh"


def pair_name(weight: str) -> str:
    """Name of the pair of a weight: ``q_proj_weight`` gives ``q_proj_pair``."""
    return f"{_stem(weight)}pair"


def _stem(weight: str) -> str:
    recurrent = weight.removeprefix("weight_")
    return f"{recurrent}_" if recurrent != weight else weight.removesuffix("weight")
