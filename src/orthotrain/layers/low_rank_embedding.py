"""Low-rank embedding: a narrow table and a matrix that widens its rows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._doors import checked
from orthotrain.layers._built import become_
from orthotrain.layers._factors import holds_pair
from orthotrain.layers._forms import register_low_rank
from orthotrain.layers._single_weight import SingleWeight
from orthotrain.layers._tracing import leaf
from orthotrain.linalg.matrices import WeightLayout


@checked
@register_low_rank("torch.nn.modules.sparse.Embedding")
class LowRankEmbedding(SingleWeight, nn.Embedding):
    """An embedding whose rows are ``k`` numbers wide, and a matrix that makes them wide again.

    A linear layer of one-hot inputs: the table is ``vh``, transposed, or the right half of the
    pair. Cut on request, ``compress(also=["embedding"])``.

    Args:
        args: As ``nn.Embedding`` takes them.
        rank: ``k``, from 1 to ``min(num_embeddings, embedding_dim)``.
        kwargs: As ``nn.Embedding`` takes them.

    Raises:
        RankError: ``rank`` is out of range.

    Example:
        >>> layer = LowRankEmbedding(10, 6, rank=2)
        >>> layer.vh.shape, layer.weight.shape
        (torch.Size([2, 10]), torch.Size([10, 6]))
    """

    on_request: ClassVar[str] = "embedding"

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Embedding(*args, **kwargs), rank)

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block, ``embedding_dim`` outputs by ``num_embeddings`` inputs."""
        assert isinstance(module, nn.Embedding)
        return (WeightLayout.of_inputs_first((module.num_embeddings, module.embedding_dim)),)

    def forward(self, ids: Integer[Tensor, "*rows"]) -> Float[Tensor, "*rows dim"]:
        """The rows that ``ids`` name."""
        if isinstance(ids, torch.fx.Proxy):
            return leaf(self, ids)
        left, right = self.two_factors()
        return F.linear(F.embedding(ids, right.mT, self.padding_idx), left)

    def _fresh(self) -> nn.Module:
        like = self.pair if holds_pair(self) else self.core
        return nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx,
            device=like.device, dtype=like.dtype,
        )  # fmt: skip
