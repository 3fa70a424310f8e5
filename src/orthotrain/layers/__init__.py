"""Layers that own parameters and call the kernels: ``u``, ``core``, ``vh`` and their forward."""

from orthotrain.layers._cost import break_even_fraction, stored_numbers
from orthotrain.layers.low_rank import (
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankLinear,
    LowRankTransposedLinear,
)
from orthotrain.layers.low_rank_attention import LowRankMultiheadAttention

__all__ = [
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankConv3d",
    "LowRankLinear",
    "LowRankMultiheadAttention",
    "LowRankTransposedLinear",
    "break_even_fraction",
    "stored_numbers",
]
