"""Low-rank multi-head attention: query, key and value projections held in factors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_count, require_share
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._built import become_
from orthotrain.layers._contraction import low_rank_linear, require_width
from orthotrain.layers._factor_names import pair_name
from orthotrain.layers._factors import (
    LowRankModule,
    holds_pair,
    is_factored,
)
from orthotrain.layers._forms import register_low_rank
from orthotrain.layers._inference import Kept, plain_factors
from orthotrain.layers._pair_contraction import pair_linear
from orthotrain.layers._readable import readable
from orthotrain.layers._tracing import leaf
from orthotrain.linalg.matrices import WeightLayout, weight_layout

_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
# Numbers of the input times their width, from which one product of three times the width takes up
# to 1.1 of three products: 48 inputs at width 768.
_ONE_PRODUCT = 3e7


@checked
@register_low_rank("torch.nn.modules.activation.MultiheadAttention")
class LowRankMultiheadAttention(LowRankModule, nn.MultiheadAttention):
    """Torch's multi-head attention with low-rank input projections.

    Made in place out of ``nn.MultiheadAttention``, or built directly. A packed
    ``in_proj_weight`` becomes one core of ``(3, k, k)``, with a basis each for query, key and
    value, or ``(k, k)`` with one shared basis. Separate projections are held one by one. With
    trained bases the core's place is taken by a pair, ``left^T`` and ``right`` side by side:
    ``in_proj_pair``, ``q_proj_pair``. The output projection is a linear layer of its own, and is
    converted as one; built directly, it is dense.

    Args:
        embed_dim: Width of query and output, a multiple of ``num_heads``.
        num_heads: How many heads.
        dropout: Share of the attention weights that training leaves out, in ``[0, 1]``.
        bias: Whether the projections have biases.
        add_bias_kv: Whether a learned token is added to keys and values.
        add_zero_attn: Whether a token of zeros is.
        kdim: Width of the keys; that of the query by default.
        vdim: Width of the values; that of the query by default.
        batch_first: Whether inputs are ``(batch, length, width)``.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.
        rank: ``k`` of each projection, from 1 to its smaller side; None is full rank.

    Raises:
        ConfigError: An argument that torch's layer cannot take.
        RankError: ``rank`` is out of range.

    Source:
        Coquelin et al., arXiv:2401.08505, for the projections; Vaswani et al.,
        arXiv:1706.03762, for the attention.
    """

    weight_names: ClassVar[tuple[str, ...]] = ("in_proj_weight", *_PROJECTIONS)

    in_proj_pair: nn.Parameter  # with trained bases only
    in_proj_weight = readable("in_proj_weight")
    q_proj_weight = readable("q_proj_weight")
    k_proj_weight = readable("k_proj_weight")
    v_proj_weight = readable("v_proj_weight")

    def __init__(  # noqa: PLR0913 - the signature is torch's
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
    ) -> None:
        name = "LowRankMultiheadAttention"
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "kdim": kdim, "vdim": vdim}
        for what, size in sizes.items():
            if size is not None:
                require_count(name, what, size)
        require_share(name, "dropout", dropout, zero=True, one=True)
        if embed_dim % num_heads:
            raise ConfigError(
                f"{name} needs embed_dim to be a multiple of num_heads, got {embed_dim} and "
                f"{num_heads}; each head takes as much of the width"
            )
        dense = partial(
            nn.MultiheadAttention, embed_dim, num_heads, dropout, bias, add_bias_kv,
            add_zero_attn, kdim, vdim, batch_first, device, dtype,
        )  # fmt: skip
        become_(self, dense, rank)

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """Packed: a block each for query, key and value, or one shared; separate: one block."""
        assert isinstance(module, nn.MultiheadAttention)
        width = module.embed_dim
        if weight == "in_proj_weight":
            shape = (3 * width, width)
            return weight_layout(module, weight, shape), WeightLayout.of_blocks(shape)
        columns = {"k_proj_weight": module.kdim, "v_proj_weight": module.vdim}.get(weight, width)
        return (weight_layout(module, weight, (width, columns or width)),)

    def forward(  # noqa: PLR0913 - the signature is torch's
        self,
        query: Float[Tensor, "*queries embed"],
        key: Float[Tensor, "*keys kdim"],
        value: Float[Tensor, "*keys vdim"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as ``nn.MultiheadAttention.forward``, same arguments, shapes and results.

        Raises:
            ShapeError: An input or a mask does not fit the batch, heads and lengths.
            ConfigError: A mask is neither boolean nor floating-point, or ``is_causal`` is set
                without ``attn_mask``, which torch needs too.
        """
        if isinstance(query, torch.fx.Proxy):
            given = (query, key, value, key_padding_mask, need_weights, attn_mask)
            both: Any = leaf(self, *given, average_attn_weights, is_causal)
            return both[0], both[1]
        if is_causal and attn_mask is None:
            raise ConfigError(
                "MultiheadAttention needs attn_mask when is_causal is True, got None; pass "
                "nn.Transformer.generate_square_subsequent_mask(length)"
            )
        batched = query.ndim == 3
        batch_dim = 0 if self.batch_first or not batched else 1
        q, k, v = self._project(query, key, value)
        if not batched:
            q, k, v = (t.unsqueeze(0) for t in (q, k, v))
        q, k, v = (self._by_head(t, batch_dim) for t in (q, k, v))
        mask = None
        hint = is_causal and key_padding_mask is None and not need_weights
        extra = self.bias_k is not None or self.add_zero_attn
        if extra or not hint:
            mask = _additive_mask(attn_mask, key_padding_mask, q, k)
        if extra:
            k, v, mask = self._with_extra_tokens(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = F.dropout(_attention_weights(q, k, mask), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, hint and mask is None)
        if batched and not batch_dim and not self.training and not torch.is_grad_enabled():
            return self.out_proj(y.transpose(1, 2).flatten(2)), weights
        y = self.out_proj(y.permute(2, 0, 1, 3).flatten(2))
        if not batched:
            return y.squeeze(1), None if weights is None else weights.squeeze(0)
        # A view, as torch returns it: a dropout that follows draws in the order of memory.
        return (y if batch_dim else y.transpose(0, 1)), weights

    def reset_parameters(self) -> None:
        """Draw all weights afresh, under the name that every layer has for it."""
        self._reset_parameters()

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Draw all weights as torch's layer does; of those in factors, the part in the basis."""
        for name in self.weight_names:
            weight = getattr(self, name)
            if weight is not None:
                nn.init.xavier_uniform_(weight)  # of a factored weight, a temporary
                if is_factored(self, name):
                    self.project_(weight, name)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for token in (self.bias_k, self.bias_v):
            if token is not None:
                nn.init.xavier_normal_(token)

    def extra_repr(self) -> str:
        """Sizes, and the rank of each projection held in factors."""
        held = (name for name in self.weight_names if is_factored(self, name))
        ranks = (f"{name}: {self.rank_of(name)}" for name in held)
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, rank=({', '.join(ranks)})"

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value after their projections, each by its cheapest contraction."""
        inputs = (query, key, value)
        _require_fitting(inputs, batch_dim=0 if self.batch_first else 1)
        bias = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if not is_factored(self, "in_proj_weight"):
            return tuple(
                self._project_one(x, name, b)
                for x, b, name in zip(inputs, bias, _PROJECTIONS, strict=True)
            )
        if (kept := plain_factors(self, "in_proj_weight")) is not None:
            return self._project_plainly(kept, inputs, bias)
        if holds_pair(self, "in_proj_weight"):
            return self._project_by_pair(inputs, bias)
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

    def _project_plainly(
        self, kept: Kept, inputs: tuple[Tensor, ...], bias: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...]:
        """Query, key and value without gradients, from what is kept of the packed weight."""
        query, key, value = inputs
        width = kept.enter[0].shape[1]
        same = query is key is value
        for x in (query,) if same else inputs:
            require_width(x, width, self.embed_dim)
        size = max(x.numel() for x in inputs)
        left, right = kept.in_three()
        if same and (len(right) == 1 or (size < kept.few and size * width < _ONE_PRODUCT)):
            return kept.applied(query, self.in_proj_bias).chunk(3, -1)
        if size < kept.few:
            parts = zip(inputs, kept.dense()[0].chunk(3), bias, strict=True)
            return tuple(F.linear(*part) for part in parts)
        enters = [F.linear(x, r) for x, r in zip(inputs, right * (3 // len(right)), strict=True)]
        return tuple([F.linear(*part) for part in zip(enters, left, bias, strict=True)])

    def _project_one(self, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
        """The projection by a separate weight, in whatever form it is held."""
        if (kept := plain_factors(self, name)) is not None:
            require_width(x, kept.enter[0].shape[1], self.embed_dim)
            return kept.applied(x, bias)
        if holds_pair(self, name):
            return pair_linear(x, getattr(self, pair_name(name)), bias, m=self.embed_dim)
        if is_factored(self, name):
            return low_rank_linear(x, *self.factors(name), bias)
        y: Tensor = F.linear(x, getattr(self, name), bias)
        return y

    def _project_by_pair(
        self, inputs: tuple[Tensor, Tensor, Tensor], bias: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...]:
        """Query, key and value by one pair of the packed weight: three blocks, or shared."""
        pair, width = self.in_proj_pair, self.embed_dim
        query, key, value = inputs
        if pair.ndim == 2 and query is key and key is value:
            return pair_linear(query, pair, self.in_proj_bias, m=3 * width).chunk(3, -1)
        if pair.ndim == 2:  # one right factor with the left one of each projection
            *left, right = torch.split(pair, width, -1)
            blocks = [torch.cat((each, right), -1) for each in left]
        else:
            blocks = list(pair.unbind())
        parts = zip(inputs, blocks, bias, strict=True)
        return tuple(pair_linear(x, block, b, m=width) for x, block, b in parts)

    def _by_head(self, t: Tensor, batch_dim: int) -> Tensor:
        """A view as ``(batch, heads, length, width of a head)``."""
        order = (1, 2, 0, 3) if batch_dim else (0, 2, 1, 3)
        return t.view(*t.shape[:2], self.num_heads, self.head_dim).permute(order)

    def _with_extra_tokens(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with ``add_bias_kv``'s learned token and ``add_zero_attn``'s zeros."""
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            shape = (1, 1, self.num_heads, self.head_dim)
            tokens = (t.to(k.dtype).view(shape).transpose(1, 2) for t in (self.bias_k, self.bias_v))
            k, v = (
                torch.cat((t, token.expand(t.shape[0], -1, -1, -1)), 2)
                for t, token in zip((k, v), tokens, strict=True)
            )
            added += 1
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
            added += 1
        return k, v, mask if mask is None else F.pad(mask, (0, added))


def _require_fitting(inputs: tuple[Tensor, ...], *, batch_dim: int) -> None:
    """Refuse inputs that do not belong together.

    Raises:
        ShapeError: They are not all 2-D or all 3-D, differ in batch, or key and value in length.
    """
    if inputs[0] is inputs[1] is inputs[2] and inputs[0].ndim in (2, 3):
        return
    query, key, value = (tuple(t.shape) for t in inputs)
    if len(query) not in (2, 3) or not len(query) == len(key) == len(value):
        raise ShapeError(
            "MultiheadAttention needs query, key and value all 3-D, or all 2-D without a batch, "
            f"got shapes {query}, {key}, {value}"
        )
    same_batch = len(query) == 2 or query[batch_dim] == key[batch_dim]
    if not same_batch or key[:-1] != value[:-1]:
        raise ShapeError(
            "MultiheadAttention needs the same batch size for query, key and value, and the same "
            f"length for key and value, got {query}, {key}, {value} with the batch in dimension "
            f"{batch_dim}; check batch_first"
        )


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled products, ``(batch, heads, queries, keys)``."""
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.mT  # scaled first: float16 reaches 65504 only
    return (scores if mask is None else scores + mask).softmax(-1)


def _additive_mask(
    attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
) -> Tensor | None:
    """Both masks as one that is added to the scores; None where there is neither."""
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    total = None
    if attn_mask is not None:
        total = _as_added(attn_mask, q.dtype, "attn_mask")
        if total.shape == (batch * heads, queries, keys):
            total = total.view(batch, heads, queries, keys)
        elif total.shape != (queries, keys):
            raise ShapeError(
                f"attn_mask needs shape (queries, keys) = ({queries}, {keys}) or (batch * heads, "
                f"queries, keys) = ({batch * heads}, {queries}, {keys}), got "
                f"{tuple(attn_mask.shape)}"
            )
    if padding is not None:
        if padding.shape not in ((batch, keys), *(((keys,),) if batch == 1 else ())):
            raise ShapeError(
                f"key_padding_mask needs shape (batch, keys) = ({batch}, {keys}), got "
                f"{tuple(padding.shape)}"
            )
        hidden = _as_added(padding, q.dtype, "key_padding_mask").view(batch, 1, 1, keys)
        total = hidden if total is None else total + hidden
    return total


def _as_added(mask: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A boolean mask (True hides) as zeros and minus infinity; a float mask as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise ConfigError(
            f"MultiheadAttention needs {name} boolean (True hides) or floating-point (added to "
            f"the scores), got {mask.dtype}; convert it with .bool()"
        )
    return mask.to(dtype)
