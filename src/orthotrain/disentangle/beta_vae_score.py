"""beta-VAE score: can a linear classifier name the factor that two batches share?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthotrain.disentangle._codes import (
    live_dimensions,
    require_count,
    require_seed,
    scaled_columns,
    scikit_learn,
    standardized,
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
# Measured: lbfgs takes up to 58 steps on 10,000 standardized votes in ten dimensions.
_MAX_STEPS = 1000


def beta_vae_score(  # noqa: PLR0913 - the numbers of a protocol, all by name
    encode: Encode,
    dataset: FactorDataset,
    *,
    seed: int,
    factors: Sequence[int] | None = None,
    batch: int = 64,
    train_votes: int = 10_000,
    evaluation_votes: int = 5_000,
) -> VoteScore:
    """beta-VAE score: accuracy of a linear classifier on differences of codes.

    A vote draws ``batch`` pairs of images that share the value of one factor and are otherwise
    independent; its features are ``mean_pairs |z_i - z'_i|``. Multinomial logistic regression
    (scikit-learn's, with its penalty ``C = 1``) learns to name the shared factor from them.

    Args:
        encode: Images ``(n, c, h, w)`` to codes ``(n, d)``. Called without gradients, once for
            each different image, so it must look at each image by itself: evaluation mode, no
            noise.
        dataset: The grid the factors are drawn from; any object with ``factor_sizes``,
            ``index_of`` and ``[indices]``.
        seed: Of all draws.
        factors: Columns that may be shared; the others only vary. All unless given. Leave out one
            that the image does not tell, like the orientation of a square.
        batch: Pairs a vote.
        train_votes: Votes the classifier is fitted on.
        evaluation_votes: New votes it is scored on.

    Returns:
        The score with its chance, ``1 / factors``. Codes that are all constant score chance.

    Raises:
        ConfigError: Fewer than two factors that vary, a column that is not there, a number of
            pairs or votes that is too small (each factor must be shared in a training vote), a
            seed outside ``[0, 2**32)``, codes that are not floating-point, or scikit-learn is
            not installed.
        ShapeError: Codes not ``(n, d)``.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Blind to order, sign, shift and scale of dimensions up to rounding: differences are
        standardized before the fit, which the published code does not. **A weak score**: it is 1,
        too, where one factor is told by no dimension, since the classifier needs but all others
        to differ (Kim and Mnih 2018), and a rotation may reach 1, too. Keeps one code for each
        different image in memory.

    Source:
        Higgins et al. (2017), ICLR, section 3. Logistic regression and settings: Locatello et al.
        (2019), arXiv:1811.12359.
    """
    function = "beta_vae_score"
    for name, value in (
        ("batch", batch),
        ("train_votes", train_votes),
        ("evaluation_votes", evaluation_votes),
    ):
        require_count(function, name, value, at_least=1)
    columns = fixed_columns(function, dataset, factors)
    generator = torch.Generator().manual_seed(require_seed(function, seed))
    sizes = dataset.factor_sizes
    votes = train_votes + evaluation_votes
    chosen = drawn_columns(columns, votes, generator)
    if len(torch.unique(chosen[:train_votes])) < len(columns):
        raise ConfigError(
            f"{function} needs every factor to be shared in a training vote, and {train_votes} "
            f"votes left out one of {len(columns)}; raise train_votes"
        )
    first = drawn_factors(sizes, (votes, batch), generator)
    second = fixed_like(drawn_factors(sizes, (votes, batch), generator), first, columns[chosen])
    codes, (rows, other_rows) = encoded_once(function, encode, dataset, first, second)
    features = mean_differences(codes, rows, other_rows)
    known = features[:train_votes]
    # Differences of a constant that trembles by rounding would be standardized to noise.
    live = live_dimensions(codes) & live_dimensions(known)
    features = standardized(features, known, live)
    linear_model = scikit_learn(function, "linear_model")
    classifier = linear_model.LogisticRegression(max_iter=_MAX_STEPS, random_state=seed)
    classifier.fit(features[:train_votes].numpy(), chosen[:train_votes].numpy())
    right = (torch.from_numpy(classifier.predict(features.numpy())) == chosen).double()
    score = float(right[train_votes:].mean())
    return VoteScore(
        score=score,
        chance=1 / len(columns),
        standard_error=standard_error(score, evaluation_votes),
        train_score=float(right[:train_votes].mean()),
    )


def mean_differences(codes: Tensor, rows: Tensor, other_rows: Tensor) -> Tensor:
    """``(votes, d)`` mean over pairs of ``|z - z'|``; each dimension to a scale of its own.

    Args:
        codes: ``(u, d)``.
        rows: ``(votes, batch)`` rows of the codes.
        other_rows: The other image of each pair.
    """
    scaled = scaled_columns(codes.double())
    parts = zip(
        torch.split(rows, _VOTES_AT_ONCE), torch.split(other_rows, _VOTES_AT_ONCE), strict=True
    )
    return torch.cat([(scaled[a] - scaled[b]).abs().mean(dim=1) for a, b in parts])
