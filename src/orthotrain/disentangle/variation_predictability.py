"""Variation predictability (VP): can a classifier see which latent coordinate moved?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain._checks import require_count, require_number, require_share
from orthotrain._doors import checked
from orthotrain.disentangle.generators import Generate, Source, ValueRange, measuring
from orthotrain.disentangle.networks import VariationClassifier, accuracy_and_gain, train_epoch
from orthotrain.disentangle.samples import stream
from orthotrain.errors import ConfigError

_NAME = "variation_predictability"
_SCORED_AT_ONCE = 256


@checked
@dataclass(frozen=True)
class ClassifierBudget:
    """How many pairs, and how long the classifiers train on them.

    The defaults are the published ones; on a CPU take fewer epochs.

    Attributes:
        pairs: Image pairs in all; an equal number moves each coordinate.
        train_fraction: Part of them that is trained on.
        validation_fraction: Part on which the epoch is chosen; the rest gives the score.
        classifiers: How many, each with a split and first weights of its own; at least three.
        epochs: Each over the whole training part.
        batch_size: Pairs per optimizer step.
        lr: Of Adam.
        width: Of ``VariationClassifier``.
    """

    pairs: int = 10_000
    train_fraction: float = 0.1
    validation_fraction: float = 0.1
    classifiers: int = 3
    epochs: int = 200
    batch_size: int = 32
    lr: float = 0.01
    width: int = 64

    def __post_init__(self) -> None:
        for name in ("pairs", "classifiers", "epochs", "batch_size", "width"):
            least = {"classifiers": 3, "batch_size": 2}.get(name, 1)
            require_count("ClassifierBudget", name, getattr(self, name), least=least)
        require_number("ClassifierBudget", "lr", self.lr, above=0, most=1e3)
        for name in ("train_fraction", "validation_fraction"):
            require_share("ClassifierBudget", name, getattr(self, name))


@dataclass(frozen=True)
class VariationPredictability:
    """Accuracy on pairs that neither training nor the choice of an epoch has seen.

    Attributes:
        accuracy: Mean over the classifiers, in [0, 1].
        spread: Standard deviation over the classifiers. Between trained generators the score
            moves further: train several.
        chance: The chance level, one over the number of coordinates.
        accuracies: Of each classifier.
        pairs: Image pairs in all.
    """

    accuracy: float
    spread: float
    chance: float
    accuracies: tuple[float, ...]
    pairs: int

    def __str__(self) -> str:
        return (
            f"VP[{self.pairs:,} pairs] = {100 * self.accuracy:.1f} % "
            f"+- {100 * self.spread:.1f} (chance level {100 * self.chance:.1f} %)"
        )


@checked
def variation_predictability(  # noqa: PLR0913 - the settings of a metric, by name
    generate: Generate,
    latent_dim: int,
    *,
    seed: int,
    budget: ClassifierBudget | None = None,
    factors: int | None = None,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> VariationPredictability:
    """Accuracy with which a small network tells, from ``x1 - x2``, which coordinate moved.

    Both latents of a pair are from the prior N(0, 1) and differ in one coordinate. The images stay
    in memory: 0.5 GB for 10,000 pairs of 64x64x3. A tenth is trained on, the epoch is chosen by
    the accuracy on another part, and the score is that on the rest.

    Args:
        generate: Latents ``(n, latent_dim)`` to images, as for ``activeness``.
        latent_dim: Length of a latent.
        seed: Of latents, splits, first weights and order of the pairs. The same seed gives the
            same numbers on the same machine, with the same number of threads.
        budget: None is ``ClassifierBudget()``.
        factors: How many coordinates, from the first, may move; None is all. At least two.
        batch_size: Images per call of ``generate``.
        value_range: Of the images, see ``activeness``.

    Returns:
        ``.accuracy``, ``.spread`` and ``.chance``. It prints as ``VP[pairs]``.

    Raises:
        ConfigError: A setting out of its range, too few pairs for the parts to hold each
            coordinate (two in training), or images out of their range.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``.
        NonFiniteError: An image holds NaN or infinity.

    Note:
        A score near the chance level says that the coordinates look alike or do nothing. A high
        one says that they differ, not that each is one factor of the data. Not differentiable.

    Source:
        Zhu, Xu and Tao (2020), arXiv:2007.12885. There the epoch is chosen on the pairs that are
        scored; here on others.
    """
    source = Source.of(_NAME, generate, latent_dim, factors, batch_size, value_range)
    budget = ClassifierBudget() if budget is None else budget
    _require_budget(budget, source.factors)
    random = stream(_NAME, seed)
    differences, labels = _pairs(source, budget.pairs, random)
    accuracies = [
        _accuracy(differences, labels, source.factors, budget, random)
        for _ in range(budget.classifiers)
    ]
    return VariationPredictability(
        accuracy=statistics.fmean(accuracies),
        spread=statistics.stdev(accuracies),
        chance=1 / source.factors,
        accuracies=tuple(accuracies),
        pairs=budget.pairs,
    )


def moved_coordinate(
    z: Float[Tensor, "n d"], dims: Int64[Tensor, " n"], random: torch.Generator
) -> Float[Tensor, "n d"]:
    """The latents with one coordinate each drawn anew from N(0, 1)."""
    drawn = torch.randn(len(z), generator=random, dtype=torch.float64, device=random.device)
    rows = torch.arange(len(z), device=z.device)
    other = z.clone()
    other[rows, dims.to(z.device)] = drawn.to(z)
    return other


def _pairs(
    source: Source, count: int, random: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """Differences of images, and which coordinate moved; each as often as any other."""
    labels = torch.arange(count) % source.factors
    first = source.latents(count, random)
    second = moved_coordinate(first, labels, random)
    with measuring(source.generate):
        differences = torch.cat([a - b for a, b in source.batches(first, second)])
    # The classifiers are float32, whatever the generator is.
    return differences.float(), labels.to(differences.device)


def _accuracy(
    x: Tensor, labels: Tensor, factors: int, budget: ClassifierBudget, random: torch.Generator
) -> float:
    """Train one classifier on a split of its own and score it on what is left."""
    fractions = (budget.train_fraction, budget.validation_fraction)
    train, validation, rest = _parts(labels, factors, fractions, random)
    network = VariationClassifier(
        factors, channels=x.shape[1], width=budget.width, generator=random
    ).to(x.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=budget.lr)
    best, kept = (-1.0, 0.0), network.state_dict()
    for _ in range(budget.epochs):
        order = train[torch.randperm(len(train), generator=random)]
        train_epoch(network, optimizer, x, labels, order, budget.batch_size)
        found = accuracy_and_gain(network, x, labels, validation, _SCORED_AT_ONCE)
        # Ties between accuracies, which are common on a small part, go to the lower loss.
        if found > best:
            best, kept = found, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(kept)
    return accuracy_and_gain(network, x, labels, rest, _SCORED_AT_ONCE)[0]


def _parts(
    labels: Tensor, factors: int, fractions: Sequence[float], random: torch.Generator
) -> list[Tensor]:
    """Indices of training, validation and the rest; each coordinate in each to its share."""
    parts: list[list[Tensor]] = [[], [], []]
    labels = labels.cpu()
    for factor in range(factors):
        members = (labels == factor).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=random)]
        sizes = _sizes(len(members), fractions)
        for part, chosen in zip(parts, torch.split(members, sizes), strict=True):
            part.append(chosen)
    return [torch.cat(part) for part in parts]


def _sizes(count: int, fractions: Sequence[float]) -> list[int]:
    cut = [round(fraction * count) for fraction in fractions]
    return [*cut, count - sum(cut)]


def _require_budget(budget: ClassifierBudget, factors: int) -> None:
    if factors < 2:
        raise ConfigError(
            f"{_NAME} needs at least two coordinates to tell apart, got {factors}; a single one "
            f"is always right"
        )
    fractions = (budget.train_fraction, budget.validation_fraction)
    if sum(fractions) >= 1:
        raise ConfigError(
            f"{_NAME} needs train_fraction and validation_fraction that leave a rest, got "
            f"{fractions}; the published training part is 0.1"
        )
    train, validation, rest = _sizes(budget.pairs // factors, fractions)
    if train < 2 or validation < 1 or rest < 1:
        raise ConfigError(
            f"{_NAME} needs two training pairs, one for validation and one for the score for each "
            f"of {factors} coordinates, got {train}, {validation} and {rest} of "
            f"{budget.pairs} pairs; give more pairs or larger fractions"
        )
