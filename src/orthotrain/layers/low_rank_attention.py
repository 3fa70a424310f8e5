"""Low-rank multi-head attention: query, key and value projections held in factors."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.errors import ShapeError
from orthotrain.layers._contraction import low_rank_linear
from orthotrain.layers._factors import (
    LowRankModule,
    WeightLayout,
    is_factored,
    register_low_rank,
)

_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def _readable(name: str) -> property:
    """A weight as torch's own code reads it: dense, materialized, or None where there is none."""

    def read(self: LowRankModule) -> Tensor | None:
        return self.materialized(name) if is_factored(self, name) else self._parameters[name]

    return property(
        read, doc=f"``{name}`` of torch's layer; materialized where it is held low-rank."
    )


@register_low_rank("torch.nn.modules.activation.MultiheadAttention")
class LowRankMultiheadAttention(LowRankModule, nn.MultiheadAttention):
    """Torch's multi-head attention with low-rank input projections.

    Made in place out of ``nn.MultiheadAttention``. A packed ``in_proj_weight`` becomes one core
    of ``(3, k, k)``, with a basis each for query, key and value, or ``(k, k)`` with one shared
    basis. Separate projections are held one by one. The output projection is a linear layer of
    its own, and is converted as one.

    Source:
        Coquelin et al., arXiv:2401.08505, for the projections; Vaswani et al.,
        arXiv:1706.03762, for the attention.
    """

    weight_names: ClassVar[tuple[str, ...]] = ("in_proj_weight", *_PROJECTIONS)

    in_proj_weight = _readable("in_proj_weight")  # type: ignore[assignment]
    q_proj_weight = _readable("q_proj_weight")  # type: ignore[assignment]
    k_proj_weight = _readable("k_proj_weight")  # type: ignore[assignment]
    v_proj_weight = _readable("v_proj_weight")  # type: ignore[assignment]

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """Packed: a block each for query, key and value, or one shared; separate: one block."""
        assert isinstance(module, nn.MultiheadAttention)
        width = module.embed_dim
        if weight == "in_proj_weight":
            return tuple(WeightLayout.of_blocks((3 * width, width), blocks) for blocks in (3, 1))
        columns = {"k_proj_weight": module.kdim, "v_proj_weight": module.vdim}.get(weight, width)
        return (WeightLayout.of_blocks((width, columns or width)),)

    def forward(
        self,
        query: Float[Tensor, "..."],
        key: Float[Tensor, "..."],
        value: Float[Tensor, "..."],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as ``nn.MultiheadAttention.forward``, same arguments, shapes and results.

        Raises:
            ShapeError: A mask does not fit the batch, heads and lengths, or ``is_causal`` is
                set without ``attn_mask``, which torch needs too.
        """
        if is_causal and attn_mask is None:
            raise ShapeError(
                "MultiheadAttention needs attn_mask where is_causal is set, got None; pass "
                "nn.Transformer.generate_square_subsequent_mask(length)"
            )
        batched = query.ndim == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._project(query, key, value)
        k, v = self._with_bias_tokens(k, v)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        mask = _additive_mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = _attention_weights(q, k, mask)
            y = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value after their projections, each by its cheapest contraction."""
        inputs = (query, key, value)
        bias = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if not is_factored(self, "in_proj_weight"):
            weights = self._dense_or_none()
            return tuple(
                F.linear(x, w, b) if w is not None else low_rank_linear(x, *self.factors(name), b)
                for x, w, b, name in zip(inputs, weights, bias, _PROJECTIONS, strict=True)
            )
        u, core, vh = self.factors("in_proj_weight")
        if core.ndim == 3:
            factors = zip(u.unbind(), core.unbind(), vh.unbind(), strict=True)
            return tuple(
                low_rank_linear(x, *f, b) for x, f, b in zip(inputs, factors, bias, strict=True)
            )
        if query is key and key is value:
            return low_rank_linear(query, u, core, vh, self.in_proj_bias).chunk(3, -1)
        parts = zip(inputs, u.chunk(3), bias, strict=True)
        return tuple(low_rank_linear(x, part, core, vh, b) for x, part, b in parts)

    def _dense_or_none(self) -> tuple[Tensor | None, ...]:
        """The projections that are still dense; None where one is held in factors."""
        if self._qkv_same_embed_dim:
            packed = self._parameters["in_proj_weight"]
            assert packed is not None
            return packed.chunk(3)
        return tuple(
            None if is_factored(self, name) else self._parameters[name] for name in _PROJECTIONS
        )

    def _with_bias_tokens(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with the learned extra token of ``add_bias_kv``, where there is one."""
        if self.bias_k is None or self.bias_v is None:
            return k, v
        batch = k.shape[0]
        extra = (t.to(k.dtype).expand(batch, 1, -1) for t in (self.bias_k, self.bias_v))
        return tuple(torch.cat(pair, 1) for pair in zip((k, v), extra, strict=True))  # type: ignore[return-value]


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled products, ``(batch, heads, queries, keys)``."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores + mask).softmax(-1)


def _additive_mask(
    attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
) -> Tensor | None:
    """Both masks as one that is added to the scores, extra keys left open; None where neither."""
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    total = None
    if attn_mask is not None:
        total = _as_added(attn_mask, q.dtype)
        if total.ndim == 3 and total.shape[0] == batch * heads:
            total = total.unflatten(0, (batch, heads))
        if total.ndim not in (2, 4) or total.shape[-2] != queries:
            raise ShapeError(
                f"attn_mask needs shape (queries, keys) or (batch * heads, queries, keys) with "
                f"batch {batch}, heads {heads}, queries {queries}, got {tuple(attn_mask.shape)}"
            )
        total = F.pad(total, (0, keys - total.shape[-1]))
    if padding is not None:
        open_or_not = _as_added(padding, q.dtype).reshape(-1, 1, 1, padding.shape[-1])
        if open_or_not.shape[0] != batch or padding.shape[-1] > keys:
            raise ShapeError(
                f"key_padding_mask needs shape (batch, keys) = ({batch}, {keys}), got "
                f"{tuple(padding.shape)}"
            )
        open_or_not = F.pad(open_or_not, (0, keys - padding.shape[-1]))
        total = open_or_not if total is None else total + open_or_not
    return total


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True hides) as zeros and minus infinity; a float mask as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask.to(dtype)
