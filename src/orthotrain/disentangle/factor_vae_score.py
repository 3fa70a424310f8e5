"""FactorVAE score: which dimension varies least while one factor stands still."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from orthotrain.disentangle._codes import (
    live_dimensions,
    require_count,
    require_seed,
    scaled_columns,
)
from orthotrain.disentangle._votes import (
    Encode,
    FactorDataset,
    VoteScore,
    drawn_columns,
    drawn_factors,
    encoded_once,
    fixed_columns,
    fixed_like,
    standard_error,
)
from orthotrain.errors import ConfigError

_VOTES_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class FactorVaeScore(VoteScore):
    """What ``factor_vae_score`` measured.

    Attributes:
        live: How many dimensions can vote; the constant ones cannot.
        votes: ``(d, f)`` training votes: how often dimension ``i`` varied least while factor
            ``j`` of the named ones stood still. Rows are those of the codes, dead ones included.
    """

    live: int
    votes: Int[Tensor, "d f"]


def factor_vae_score(  # noqa: PLR0913 - the numbers of a protocol, all by name
    encode: Encode,
    dataset: FactorDataset,
    *,
    seed: int,
    factors: Sequence[int] | None = None,
    batch: int = 64,
    train_votes: int = 10_000,
    evaluation_votes: int = 5_000,
    variance_samples: int = 10_000,
    min_std: float = 0.0,
) -> FactorVaeScore:
    """FactorVAE score: accuracy of a majority vote of the least varying dimension.

    A vote fixes one factor at a random value, draws the others uniformly ``batch`` times, and
    names ``argmin_i Var(z_i) / Var_all(z_i)`` over the dimensions that live, ``Var_all`` being
    the variance over random samples. The classifier maps a dimension to the factor that most of
    its training votes had; the score is how often that is right on new votes.

    Args:
        encode: Images ``(n, c, h, w)`` to codes ``(n, d)``. Called without gradients, once for
            each different image, so it must look at each image by itself: evaluation mode, no
            noise.
        dataset: The grid the factors are drawn from; any object with ``factor_sizes``,
            ``index_of`` and ``[indices]``.
        seed: Of all draws.
        factors: Columns that may be fixed; the others only vary. All unless given. Leave out one
            that the image does not tell, like the orientation of a square.
        batch: Images a vote.
        train_votes: Votes the classifier is made from.
        evaluation_votes: New votes it is scored on.
        variance_samples: Images from which ``Var_all`` is measured.
        min_std: A dimension with a standard deviation of at most this is dead; one that is
            constant up to rounding always is. Locatello et al. take .05, which fits the unit
            prior of a VAE and makes the score depend on the codes' scale.

    Returns:
        The score with its chance, ``1 / factors``. Where no dimension lives there is no vote and
        the score is 0. A dimension without a training vote names no factor, and votes for it are
        wrong.

    Raises:
        ConfigError: Fewer than two factors that vary, a column that is not there, a number of
            images or votes that is too small, a negative ``min_std``, a seed outside
            ``[0, 2**32)``, or codes that are not floating-point.
        ShapeError: Codes not ``(n, d)``.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Blind to order, sign, shift and scale of dimensions, and to copies of a dimension: that
        several dimensions tell about one factor is not punished. Not 0 for a rotation, which
        only lowers it. Keeps one code for each different image in memory. The published code
        reports the number of all dimensions as that of the active ones, and counts a vote at an
        index among those that are left after pruning; here ``live`` counts what can vote, and
        a row of ``votes`` is a dimension of the codes.

    Source:
        Kim and Mnih (2018), arXiv:1802.05983, section 4. Settings: Locatello et al. (2019),
        arXiv:1811.12359.
    """
    function = "factor_vae_score"
    for name, value, least in (
        ("batch", batch, 2),
        ("train_votes", train_votes, 1),
        ("evaluation_votes", evaluation_votes, 1),
        ("variance_samples", variance_samples, 2),
    ):
        require_count(function, name, value, at_least=least)
    if not 0 <= min_std < math.inf:
        raise ConfigError(
            f"{function} needs min_std to be a finite number of at least 0, got {min_std}; 0 "
            f"leaves out constant dimensions alone"
        )
    columns = fixed_columns(function, dataset, factors)
    generator = torch.Generator().manual_seed(require_seed(function, seed))
    sizes = dataset.factor_sizes
    everywhere = drawn_factors(sizes, (variance_samples,), generator)
    votes = train_votes + evaluation_votes
    chosen = drawn_columns(columns, votes, generator)
    drawn = drawn_factors(sizes, (votes, batch), generator)
    shown = fixed_like(drawn, drawn[:, :1], columns[chosen])
    codes, (sample_rows, vote_rows) = encoded_once(function, encode, dataset, everywhere, shown)
    live = live_dimensions(codes[sample_rows])
    if min_std > 0:
        live &= codes[sample_rows].double().std(dim=0) > min_std
    cast = least_varying(codes, sample_rows, vote_rows, live)
    table = torch.zeros(codes.shape[1], len(columns), dtype=torch.int64)
    if bool(live.any()):
        pairs = (cast[:train_votes], chosen[:train_votes])
        table.index_put_(pairs, torch.ones(train_votes, dtype=torch.int64), accumulate=True)
    named = torch.where(table.sum(dim=1) > 0, table.argmax(dim=1), -1)
    right = (named[cast] == chosen).double()
    score = float(right[train_votes:].mean())
    return FactorVaeScore(
        score=score,
        chance=1 / len(columns),
        standard_error=standard_error(score, evaluation_votes),
        train_score=float(right[:train_votes].mean()),
        live=int(live.sum()),
        votes=table,
    )


def least_varying(codes: Tensor, sample_rows: Tensor, vote_rows: Tensor, live: Tensor) -> Tensor:
    """``(votes,)``: the dimension of least variance over its variance among the samples.

    Args:
        codes: ``(u, d)``.
        sample_rows: ``(s,)`` rows of the codes that say how much a dimension varies.
        vote_rows: ``(votes, batch)`` rows.
        live: ``(d,)`` which dimensions may be named, whatever else.

    Returns:
        Indices into all ``d`` dimensions; the first where several vary equally little.
    """
    scaled = scaled_columns(codes.double())
    spread = torch.where(live, scaled[sample_rows].var(dim=0), 1.0)
    parts = []
    for rows in torch.split(vote_rows, _VOTES_AT_ONCE):
        ratio = scaled[rows].var(dim=1) / spread
        parts.append(torch.where(live, ratio, torch.inf).argmin(dim=1))
    return torch.cat(parts)
