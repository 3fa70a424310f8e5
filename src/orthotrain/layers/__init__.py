"""Layers that own parameters and call the kernels: ``u``, ``core``, ``vh`` and their forward."""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
from orthotrain.layers._cost import Bases, break_even_fraction, stored_numbers
from orthotrain.layers.covariance_pool import GlobalCovariancePool
from orthotrain.layers.decorrelated_batch_norm import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
)
from orthotrain.layers.eigen_subspace import EigenSubspace
from orthotrain.layers.insert_whitening import insert_whitening
from orthotrain.layers.low_rank import LowRankLinear, LowRankTransposedLinear
from orthotrain.layers.low_rank_attention import LowRankMultiheadAttention
from orthotrain.layers.low_rank_conv import LowRankConv1d, LowRankConv2d, LowRankConv3d
from orthotrain.layers.low_rank_conv_transpose import (
    LowRankConvTranspose1d,
    LowRankConvTranspose2d,
    LowRankConvTranspose3d,
)
from orthotrain.layers.low_rank_embedding import LowRankEmbedding
from orthotrain.layers.low_rank_recurrent import (
    LowRankGRU,
    LowRankGRUCell,
    LowRankLSTM,
    LowRankLSTMCell,
    LowRankRNN,
    LowRankRNNCell,
)
from orthotrain.layers.orthogonal_conv import OrthogonalConv2d
from orthotrain.layers.orthogonal_weight import orthogonal_weight

__all__ = [
    "Bases",
    "DecorrelatedBatchNorm1d",
    "DecorrelatedBatchNorm2d",
    "DecorrelatedBatchNorm3d",
    "EigenSubspace",
    "GlobalCovariancePool",
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankConv3d",
    "LowRankConvTranspose1d",
    "LowRankConvTranspose2d",
    "LowRankConvTranspose3d",
    "LowRankEmbedding",
    "LowRankGRU",
    "LowRankGRUCell",
    "LowRankLSTM",
    "LowRankLSTMCell",
    "LowRankLinear",
    "LowRankMultiheadAttention",
    "LowRankRNN",
    "LowRankRNNCell",
    "LowRankTransposedLinear",
    "OrthogonalConv2d",
    "break_even_fraction",
    "insert_whitening",
    "orthogonal_weight",
    "stored_numbers",
]

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
