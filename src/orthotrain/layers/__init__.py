"""Layers that own parameters and call the kernels: ``u``, ``core``, ``vh`` and their forward."""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
    from orthotrain.layers._cost import Bases, break_even_fraction, stored_numbers
    from orthotrain.layers.covariance_pool import GlobalCovariancePool
    from orthotrain.layers.decorrelated_batch_norm import (
        DecorrelatedBatchNorm1d,
        DecorrelatedBatchNorm2d,
        DecorrelatedBatchNorm3d,
    )
    from orthotrain.layers.eigen_subspace import EigenSubspace
    from orthotrain.layers.inserted_whitening import insert_whitening
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
    from orthotrain.layers.orthogonal_parametrization import orthogonal_weight

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
_HOME = {
    "Bases": "_cost",
    "DecorrelatedBatchNorm1d": "decorrelated_batch_norm",
    "DecorrelatedBatchNorm2d": "decorrelated_batch_norm",
    "DecorrelatedBatchNorm3d": "decorrelated_batch_norm",
    "EigenSubspace": "eigen_subspace",
    "GlobalCovariancePool": "covariance_pool",
    "LowRankConv1d": "low_rank_conv",
    "LowRankConv2d": "low_rank_conv",
    "LowRankConv3d": "low_rank_conv",
    "LowRankConvTranspose1d": "low_rank_conv_transpose",
    "LowRankConvTranspose2d": "low_rank_conv_transpose",
    "LowRankConvTranspose3d": "low_rank_conv_transpose",
    "LowRankEmbedding": "low_rank_embedding",
    "LowRankGRU": "low_rank_recurrent",
    "LowRankGRUCell": "low_rank_recurrent",
    "LowRankLSTM": "low_rank_recurrent",
    "LowRankLSTMCell": "low_rank_recurrent",
    "LowRankLinear": "low_rank",
    "LowRankMultiheadAttention": "low_rank_attention",
    "LowRankRNN": "low_rank_recurrent",
    "LowRankRNNCell": "low_rank_recurrent",
    "LowRankTransposedLinear": "low_rank",
    "OrthogonalConv2d": "orthogonal_conv",
    "break_even_fraction": "_cost",
    "insert_whitening": "inserted_whitening",
    "orthogonal_weight": "orthogonal_parametrization",
    "stored_numbers": "_cost",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
