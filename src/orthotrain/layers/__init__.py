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
from orthotrain.layers.orthogonal_conv import OrthogonalConv2d
from orthotrain.layers.orthogonal_weight import orthogonal_weight

__all__ = [
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankConv3d",
    "LowRankLinear",
    "LowRankMultiheadAttention",
    "LowRankTransposedLinear",
    "OrthogonalConv2d",
    "break_even_fraction",
    "orthogonal_weight",
    "stored_numbers",
]
