"""The transformer block of the small models: pre-norm, with q, k and v as layers of their own."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_number
from orthotrain.errors import ConfigError


class SelfAttention(nn.Module):
    """Multi-head self-attention; q, k and v are layers of their own, so each has its own basis.

    Args:
        width: Token width, a multiple of ``heads``.
        heads: Attention heads.
        causal: A token sees itself and those before it.
        bias: Whether the last layer has a bias; q, k and v have none.
    """

    def __init__(self, width: int, *, heads: int, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Mix tokens; ``(batch, tokens, width)`` in and out."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer MLP, each with a residual.

    Args:
        width: Token width, a multiple of ``heads``.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``width``.
        causal: A token sees itself and those before it.
        bias: Whether norms and layers have a bias; q, k and v have none.
    """

    def __init__(
        self, width: int, *, heads: int, mlp_ratio: float, causal: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = SelfAttention(width, heads=heads, causal=causal, bias=bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """``(batch, tokens, width)`` in and out."""
        x = x + self.attention(self.norm1(x))
        change: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + change


def check_sizes(name: str, *, heads: int, mlp_ratio: float, sizes: Mapping[str, int]) -> None:
    """Refuse sizes of a transformer that do not fit each other.

    Args:
        name: The model, for the message.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over the width.
        sizes: All sizes by name; ``width`` is one of them.

    Raises:
        ConfigError: A size below one, a width that is no multiple of ``heads``, or an MLP without
            a hidden unit.
    """
    for size_name, size in {**sizes, "heads": heads}.items():
        if size < 1:
            raise ConfigError(f"{name}: {size_name}={size} must be at least 1")
    require_number(name, "mlp_ratio", mlp_ratio, above=0, most=1e4)
    width = sizes["width"]
    if width % heads:
        raise ConfigError(
            f"{name}: width={width} is no multiple of heads={heads}; choose a multiple"
        )
    if round(width * mlp_ratio) < 1:
        raise ConfigError(
            f"{name}: mlp_ratio={mlp_ratio} leaves no hidden unit at width={width}; need "
            "width * mlp_ratio of at least 1"
        )
