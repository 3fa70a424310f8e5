"""FactorVAE and beta-VAE score: votes in which one factor is fixed and the others drawn anew."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.disentangle.samples import (
    live_dimensions,
    require_codes,
    scaled_columns,
    standardized,
    stream,
)
from orthotrain.errors import ConfigError, OrthotrainWarning, ShapeError
from orthotrain.extras import optional_module

Encode = Callable[[Tensor], Tensor]

_IMAGES_PER_CALL = 1024
_VOTES_AT_ONCE = 1024
# Measured: lbfgs takes up to 58 steps on 10,000 standardized votes in ten dimensions.
_MAX_STEPS = 1000


@runtime_checkable
class FactorDataset(Protocol):
    """A full grid of factors, each point with its image."""

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """How many values each factor takes; a value is an integer from 0."""

    def index_of(self, factors: Int[Tensor, "n f"]) -> Int[Tensor, " n"]:
        """Indices of grid points."""

    def __getitem__(
        self, index: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n f"]]:
        """Images and factors of grid points."""


@dataclass(frozen=True)
class VoteScore:
    """Accuracy of a classifier that names the fixed factor of a vote.

    Attributes:
        score: Accuracy on the evaluation votes, in [0, 1].
        chance: The chance level, one over the number of factors: what codes that tell nothing
            score on average.
        standard_error: Of ``score``, from the number of evaluation votes alone.
        train_score: Accuracy on the votes the classifier was made from.
    """

    score: float
    chance: float
    standard_error: float
    train_score: float


def fixed_columns(function: str, dataset: FactorDataset, factors: Sequence[int] | None) -> Tensor:
    """Columns of the factors that a vote may fix; one that takes one value is left out.

    Raises:
        ConfigError: ``dataset`` is not a factor grid, ``factors`` names a column that is not
            there or one twice, or fewer than two of the columns vary.
    """
    if not isinstance(dataset, FactorDataset):
        raise ConfigError(
            f"{function} needs a dataset with factor_sizes, index_of(factors) and "
            f"dataset[indices] -> (images, factors), got {type(dataset).__name__}"
        )
    sizes = dataset.factor_sizes
    asked = list(range(len(sizes))) if factors is None else list(factors)
    if not set(asked) <= set(range(len(sizes))) or len(set(asked)) < len(asked):
        raise ConfigError(
            f"{function} needs factors to be different columns from 0 to {len(sizes) - 1}, got "
            f"{asked}; None takes all"
        )
    kept = [j for j in asked if sizes[j] > 1]
    if len(kept) < 2:
        raise ConfigError(
            f"{function} needs at least two factors with two values or more to tell them apart, "
            f"got {len(kept)} of columns {asked} with sizes {tuple(sizes)}"
        )
    if len(kept) < len(asked):
        constant = ", ".join(str(j) for j in asked if j not in kept)
        warnings.warn(
            f"{function}: factor {constant} takes one value and is never fixed; name the others "
            f"with factors= to say so",
            OrthotrainWarning,
            stacklevel=3,
        )
    return torch.tensor(kept)


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


@checked
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

    A vote fixes one factor at a random value and draws the others uniformly ``batch`` times. It
    names ``argmin_i Var(z_i) / Var_all(z_i)`` over the live dimensions, where ``Var_all`` is the
    variance over random samples. The classifier maps a dimension to the factor that most of its
    training votes had. The score is how often that is right on new votes.

    Args:
        encode: Images ``(n, c, h, w)`` to codes ``(n, d)``. It is called without gradients, once
            for each different image. It must look at each image by itself: evaluation mode, no
            noise.
        dataset: The grid the factors are drawn from: any object with ``factor_sizes``,
            ``index_of`` and ``[indices]``.
        seed: Of all draws.
        factors: Columns that may be fixed; the others only vary. None is all. Leave out one that
            the image does not tell, like the orientation of a square.
        batch: Images per vote.
        train_votes: Votes the classifier is made from.
        evaluation_votes: New votes it is scored on.
        variance_samples: Images from which ``Var_all`` is measured.
        min_std: A dimension with a standard deviation of at most this is dead; one that is
            constant up to rounding always is. Locatello et al. take .05, which fits the unit
            prior of a VAE and makes the score depend on the codes' scale.

    Returns:
        The score with its chance level, ``1 / factors``. Without a live dimension there is no
        vote, and the score is 0. A dimension without a training vote names no factor, and votes
        for it are wrong.

    Raises:
        ConfigError: Fewer than two factors that vary, a column that is not there, a number of
            images or votes that is too small, a negative ``min_std``, a seed outside
            ``[0, 2**32)``, or codes that are not floating-point.
        ShapeError: Codes not ``(n, d)``.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Not differentiable. Blind to order, sign, shift and scale of dimensions, and to copies of
        a dimension. A rotation lowers it, not to 0. One code for each different image is kept in
        memory. Other than in the published code, ``live`` counts what can vote, and a row of
        ``votes`` is a dimension of the codes.

    Source:
        Kim and Mnih (2018), arXiv:1802.05983, section 4. Settings: Locatello et al. (2019),
        arXiv:1811.12359.
    """
    function = "factor_vae_score"
    counts = {"train_votes": train_votes, "evaluation_votes": evaluation_votes}
    _require_counts(function, {"batch": batch, "variance_samples": variance_samples}, least=2)
    _require_counts(function, counts, least=1)
    if not 0 <= min_std < math.inf:
        raise ConfigError(
            f"{function} needs min_std to be a finite number of at least 0, got {min_std}; 0 "
            f"leaves out constant dimensions alone"
        )
    columns = fixed_columns(function, dataset, factors)
    random = stream(function, seed)
    sizes, votes = dataset.factor_sizes, train_votes + evaluation_votes
    everywhere = _drawn_factors(sizes, (variance_samples,), random)
    chosen = torch.randint(len(columns), (votes,), generator=random)
    drawn = _drawn_factors(sizes, (votes, batch), random)
    shown = _fixed_like(drawn, drawn[:, :1], columns[chosen])
    codes, (sample_rows, vote_rows) = _encoded_once(function, encode, dataset, everywhere, shown)
    live = live_dimensions(codes[sample_rows])
    if min_std > 0:
        live &= codes[sample_rows].double().std(dim=0) > min_std
    cast = _least_varying(codes, sample_rows, vote_rows, live)
    table = torch.zeros(codes.shape[1], len(columns), dtype=torch.int64)
    if bool(live.any()):
        pairs = (cast[:train_votes], chosen[:train_votes])
        table.index_put_(pairs, torch.ones(train_votes, dtype=torch.int64), accumulate=True)
    named = torch.where(table.sum(dim=1) > 0, table.argmax(dim=1), -1)
    found = _vote_score(named[cast] == chosen, train_votes, len(columns))
    return FactorVaeScore(**vars(found), live=int(live.sum()), votes=table)


@checked
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
    independent. Its features are ``mean_pairs |z_i - z'_i|``. Multinomial logistic regression
    (scikit-learn's, with its penalty ``C = 1``) learns to name the shared factor from them.

    Args:
        encode: Images ``(n, c, h, w)`` to codes ``(n, d)``, as in ``factor_vae_score``.
        dataset: The grid the factors are drawn from, as in ``factor_vae_score``.
        seed: Of all draws.
        factors: Columns that may be shared; the others only vary. None is all.
        batch: Pairs per vote.
        train_votes: Votes the classifier is fitted on.
        evaluation_votes: New votes it is scored on.

    Returns:
        The score with its chance level, ``1 / factors``, which constant codes score.

    Raises:
        ConfigError: As ``factor_vae_score``; also where a factor is shared in no training vote.
        ShapeError: Codes not ``(n, d)``.
        NonFiniteError: NaN or infinity in the codes.
        MissingPackageError: scikit-learn is not installed.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        **A weak score.** It is also 1 where no dimension tells one of the factors, since the
        classifier only needs the others to differ (Kim and Mnih 2018). A rotation may reach 1.
        Differences are standardized before the fit, other than in the published code: so the
        score is blind to order, sign, shift and scale of dimensions. Not differentiable. One code
        for each different image is kept in memory.

    Source:
        Higgins et al. (2017), ICLR, section 3. Logistic regression and settings: Locatello et al.
        (2019), arXiv:1811.12359.
    """
    function = "beta_vae_score"
    counts = {"batch": batch, "train_votes": train_votes, "evaluation_votes": evaluation_votes}
    _require_counts(function, counts, least=1)
    columns = fixed_columns(function, dataset, factors)
    random = stream(function, seed)
    sizes, votes = dataset.factor_sizes, train_votes + evaluation_votes
    chosen = torch.randint(len(columns), (votes,), generator=random)
    if len(torch.unique(chosen[:train_votes])) < len(columns):
        raise ConfigError(
            f"{function} needs every factor to be shared in a training vote, and {train_votes} "
            f"votes left out one of {len(columns)}; raise train_votes"
        )
    first = _drawn_factors(sizes, (votes, batch), random)
    second = _fixed_like(_drawn_factors(sizes, (votes, batch), random), first, columns[chosen])
    codes, (rows, other_rows) = _encoded_once(function, encode, dataset, first, second)
    features = _mean_differences(codes, rows, other_rows)
    known = features[:train_votes]
    # Differences of a constant that trembles by rounding would be standardized to noise.
    live = live_dimensions(codes) & live_dimensions(known)
    features = standardized(features, known, live)
    linear_model = optional_module(function, "sklearn.linear_model", package="scikit-learn")
    classifier = linear_model.LogisticRegression(max_iter=_MAX_STEPS, random_state=seed)
    classifier.fit(features[:train_votes].numpy(), chosen[:train_votes].numpy())
    named = torch.from_numpy(classifier.predict(features.numpy()))
    return _vote_score(named == chosen, train_votes, len(columns))


def _require_counts(function: str, counts: Mapping[str, int], *, least: int) -> None:
    for name, value in counts.items():
        require_count(function, name, value, least=least)


def _vote_score(right: Tensor, train_votes: int, factors: int) -> VoteScore:
    train, evaluation = right[:train_votes].double(), right[train_votes:].double()
    score = float(evaluation.mean())
    return VoteScore(
        score=score,
        chance=1 / factors,
        standard_error=math.sqrt(score * (1 - score) / len(evaluation)),
        train_score=float(train.mean()),
    )


def _least_varying(codes: Tensor, sample_rows: Tensor, vote_rows: Tensor, live: Tensor) -> Tensor:
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


def _mean_differences(codes: Tensor, rows: Tensor, other_rows: Tensor) -> Tensor:
    """``(votes, d)`` mean over pairs of ``|z - z'|``; each dimension to a scale of its own."""
    scaled = scaled_columns(codes.double())
    sides = (torch.split(side, _VOTES_AT_ONCE) for side in (rows, other_rows))
    parts = [(scaled[a] - scaled[b]).abs().mean(dim=1) for a, b in zip(*sides, strict=True)]
    return torch.cat(parts)


def _drawn_factors(sizes: Sequence[int], shape: Sequence[int], random: torch.Generator) -> Tensor:
    """``(*shape, f)`` int64, each factor uniform and independent of the others."""
    columns = [torch.randint(size, tuple(shape), generator=random) for size in sizes]
    return torch.stack(columns, dim=-1)


def _fixed_like(factors: Tensor, source: Tensor, columns: Tensor) -> Tensor:
    """``(votes, batch, f)`` factors, with column ``columns[v]`` of vote ``v`` as in ``source``."""
    fixed = torch.nn.functional.one_hot(columns, factors.shape[-1]).bool()[:, None]
    return torch.where(fixed, source, factors)


@torch.no_grad()
def _encoded_once(
    function: str, encode: Encode, dataset: FactorDataset, *draws: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Codes of every different image among the draws, and which one each draw sees.

    Args:
        function: Named in errors.
        encode: Images to codes ``(n, d)``.
        dataset: Where the images come from.
        draws: ``(*shape, f)`` factors each.

    Returns:
        Codes ``(u, d)`` on CPU, and for each of ``draws`` rows ``shape`` into them.

    Raises:
        ShapeError, ConfigError, NonFiniteError: What ``encode`` returns is not ``(n, d)``,
            floating-point and finite.
    """
    index = torch.cat([dataset.index_of(draw.flatten(0, -2)).cpu() for draw in draws])
    different, row = torch.unique(index, return_inverse=True)
    parts: list[Tensor] = []
    for part in torch.split(different, _IMAGES_PER_CALL):
        codes = encode(dataset[part][0])
        if not isinstance(codes, Tensor):
            raise ConfigError(
                f"{function} needs encode to return one tensor of codes, got "
                f"{type(codes).__name__}; for an encoder of mean and variance pass "
                f"lambda images: encoder(images)[0]"
            )
        require_codes(function, codes, name="encode(images)")
        if len(codes) != len(part) or codes.shape[1] != (parts or [codes])[0].shape[1]:
            raise ShapeError(
                f"{function} needs one code per image from encode, all of one length, got "
                f"{tuple(codes.shape)} for {len(part)} images"
            )
        parts.append(codes.cpu())
    shapes = [draw.shape[:-1] for draw in draws]
    rows = row.split([shape.numel() for shape in shapes])
    return torch.cat(parts), [r.view(shape) for r, shape in zip(rows, shapes, strict=True)]
