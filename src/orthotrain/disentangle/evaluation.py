"""What an evaluation takes and finds: budgets, real images, and a table of one row per score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.disentangle.codes import DciModel
from orthotrain.disentangle.features import signed_images
from orthotrain.disentangle.generators import ValueRange
from orthotrain.disentangle.variation_predictability import ClassifierBudget
from orthotrain.errors import ConfigError, ShapeError

_HEADINGS = ("score", "value", "spread", "chance level", "real vs real", "note")
_LEFT = {"score", "note"}


@checked
@dataclass(frozen=True)
class FactorBudget:
    """How much the scores from true factors draw; the defaults are the published numbers.

    Attributes:
        samples: Images that are encoded for MIG, SAP, modularity and DCI.
        train_votes: Training votes of FactorVAE and beta-VAE score.
        evaluation_votes: Votes on which both are scored.
        chance_repeats: Permutations from which the chance level of the first four is measured, at
            least 2. DCI trains its classifiers for each.
        dci_model: See ``dci``.
    """

    samples: int = 10_000
    train_votes: int = 10_000
    evaluation_votes: int = 5_000
    chance_repeats: int = 3
    dci_model: DciModel = "gradient_boosting"

    def __post_init__(self) -> None:
        for name in ("samples", "train_votes", "evaluation_votes", "chance_repeats"):
            least = 1 if name.endswith("votes") else 2
            require_count("FactorBudget", name, getattr(self, name), least=least)


@checked
@dataclass(frozen=True)
class Budget:
    """How much each score draws; the defaults are what the papers take.

    Attributes:
        latents: Latents for activeness, at least 2.
        classifier: Budget of VP.
        interventions: Latents per coordinate that is moved, at least 2.
        paths: Paths for PPL.
        images: Generated images for fidelity; it needs twice as many real ones, and takes fewer
            where there are fewer. All pairs are compared, in every space and split.
        splits: Splits of the real images for fidelity.
        pca_images: Real images to which pixel PCA is fitted, at most a fifth. They are not scored.
        factors: Budget of the scores from true factors.
    """

    latents: int = 300
    classifier: ClassifierBudget = field(default_factory=ClassifierBudget)
    interventions: int = 300
    paths: int = 2000
    images: int = 2000
    splits: int = 5
    pca_images: int = 1000
    factors: FactorBudget = field(default_factory=FactorBudget)

    def __post_init__(self) -> None:
        for name in ("latents", "interventions", "paths", "images", "splits", "pca_images"):
            require_count("Budget", name, getattr(self, name), least=2)


@dataclass(frozen=True)
class Score:
    """One row: a number, and what it is read beside.

    Attributes:
        name: With its feature space and number of samples where it has them.
        value: The score.
        spread: Spread of the value; ``note`` says over what. None where it was not measured.
        chance: The chance level: what comes out where the latents mean nothing. None where that is
            not defined.
        chance_spread: Standard deviation of the chance level, where it was measured.
        floor: What real images get against other real ones at the same number of samples. None
            for scores without real images.
        note: Which direction is better, and over what the spread was taken.
    """

    name: str
    value: float
    spread: float | None = None
    chance: float | None = None
    chance_spread: float | None = None
    floor: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All scores of one generator; ``print`` shows a table.

    Attributes:
        scores: The rows, one per score.
        activeness: Activeness of each coordinate that is a factor.
        activeness_spread: Its standard error over the latents.
        settings: What the numbers depend on: seed, sizes, budgets.
    """

    scores: tuple[Score, ...]
    activeness: tuple[float, ...]
    activeness_spread: tuple[float, ...]
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> Score:
        """The row of that name.

        Raises:
            KeyError: There is no such row; the message lists the names.
        """
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"no score {name!r}; the rows are {', '.join(s.name for s in self.scores)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts, for a run record; not finite is None."""
        return {
            "scores": [
                {key: _plain(value) for key, value in vars(score).items()} for score in self.scores
            ],
            "activeness": [_plain(x) for x in self.activeness],
            "activeness_spread": [_plain(x) for x in self.activeness_spread],
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        most_first = sorted(range(len(self.activeness)), key=lambda dim: -self.activeness[dim])
        active = "  ".join(
            f"{dim}: {self.activeness[dim]:.3g} +- {self.activeness_spread[dim]:.1g}"
            for dim in most_first
        )
        return "\n".join([*_table([_cells(s) for s in self.scores]), f"activeness  {active}"])


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(score: Score) -> tuple[str, ...]:
    value, spread, chance, floor = (
        "-" if x is None else f"{x:.4g}"
        for x in (score.value, score.spread, score.chance, score.floor)
    )
    if score.chance_spread is not None:
        chance += f" +- {score.chance_spread:.1g}"
    return (score.name, value, spread, chance, floor, score.note)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns under a ruled heading."""
    padded = []
    for heading, *cells in zip(_HEADINGS, *rows, strict=True):
        width = max(len(text) for text in (heading, *cells))
        padded.append(
            [
                text.ljust(width) if heading in _LEFT else text.rjust(width)
                for text in (heading, "-" * width, *cells)
            ]
        )
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


@runtime_checkable
class Reference(Protocol):
    """Real images: a tensor ``(n, c, h, w)``, or anything that is indexed like one.

    An index tensor ``(k,)`` gives images ``(k, c, h, w)``, uint8 or floating-point, alone or as
    the first of a tuple.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: Any, /) -> Any:
        """Images at an index tensor."""


def image_batches(
    reference: Reference,
    index: Int64[Tensor, " k"],
    *,
    value_range: ValueRange,
    batch_size: int,
) -> Iterator[Float[Tensor, "n c h w"]]:
    """The images at ``index`` in [-1, 1]; raises unless each batch holds as many as asked for."""
    for part in torch.split(index, batch_size):
        found = reference[part]
        images = found[0] if isinstance(found, tuple | list) else found
        if not isinstance(images, Tensor):
            raise ConfigError(
                f"evaluate needs reference[indices] to be a tensor of images, got "
                f"{type(images).__name__}; pass a tensor, or an object that stacks its images"
            )
        if images.ndim != 4 or len(images) != len(part):
            raise ShapeError(
                f"evaluate needs reference[indices] of shape (k, c, h, w) for k = {len(part)} "
                f"indices, got {tuple(images.shape)}; index it with a tensor to see"
            )
        yield signed_images(images, value_range=value_range)


def drawn(reference: Reference, random: torch.Generator) -> Int64[Tensor, " n"]:
    """All indices of the reference in random order."""
    try:
        count = len(reference)
    except TypeError as error:
        raise ConfigError(
            f"evaluate needs a reference with a length, got {type(reference).__name__}; pass a "
            f"tensor of images, or an object with len and [indices]"
        ) from error
    return torch.randperm(count, generator=random)
