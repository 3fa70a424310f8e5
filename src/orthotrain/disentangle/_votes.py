"""Votes of the two scores that choose what is shown: one factor fixed, the others drawn anew."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthotrain.disentangle._codes import require_codes
from orthotrain.errors import ConfigError, OrthotrainWarning, ShapeError

Encode = Callable[[Tensor], Tensor]

_IMAGES_PER_CALL = 1024


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
        chance: What codes that tell nothing score on average: one over the number of factors.
        standard_error: Of ``score``, from the number of evaluation votes alone.
        train_score: Accuracy on the votes the classifier was made from.
    """

    score: float
    chance: float
    standard_error: float
    train_score: float


def standard_error(share: float, votes: int) -> float:
    """Of a share among independent votes."""
    return math.sqrt(share * (1 - share) / votes)


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


def drawn_factors(sizes: Sequence[int], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """``(*shape, f)`` int64, each factor uniform and independent of the others."""
    columns = [torch.randint(size, tuple(shape), generator=generator) for size in sizes]
    return torch.stack(columns, dim=-1)


def drawn_columns(columns: Tensor, votes: int, generator: torch.Generator) -> Tensor:
    """``(votes,)``: which position of ``columns`` each vote fixes."""
    return torch.randint(len(columns), (votes,), generator=generator)


def fixed_like(factors: Tensor, source: Tensor, columns: Tensor) -> Tensor:
    """``(votes, batch, f)`` factors, with column ``columns[v]`` of vote ``v`` as in ``source``."""
    fixed = torch.nn.functional.one_hot(columns, factors.shape[-1]).bool()[:, None]
    return torch.where(fixed, source, factors)


@torch.no_grad()
def encoded_once(
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
                f"{function} needs one code an image from encode, all of one length, got "
                f"{tuple(codes.shape)} for {len(part)} images"
            )
        parts.append(codes.cpu())
    shapes = [draw.shape[:-1] for draw in draws]
    rows = row.split([shape.numel() for shape in shapes])
    return torch.cat(parts), [r.view(shape) for r, shape in zip(rows, shapes, strict=True)]
