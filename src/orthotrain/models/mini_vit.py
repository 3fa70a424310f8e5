"""A small vision transformer: the network of the recipes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError

# Standard deviation of position and class embeddings, as in Dosovitskiy et al. (2021).
EMBEDDING_STD = 0.02


class SelfAttention(nn.Module):
    """Multi-head self-attention; q, k and v are layers of their own, so each has its own basis."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Mix tokens; ``(batch, tokens, width)`` in and out."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer MLP, each with a residual."""

    def __init__(self, width: int, *, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """``(batch, tokens, width)`` in and out."""
        x = x + self.attention(self.norm1(x))
        change: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + change


class MiniViT(nn.Module):
    """Vision transformer for small square images, mean-pooled.

    Args:
        image_size: Side of the image in pixels.
        channels: Image channels.
        classes: Outputs.
        patch_size: Side of a patch; divides ``image_size``.
        width: Token width; a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``width``.
        generator: Source of the initial weights; None takes torch's global state.

    Raises:
        ConfigError: A size below one, or sizes that do not divide each other.

    Source:
        Dosovitskiy et al. (2021), arXiv:2010.11929, with mean pooling in place of the class
        token, as in Beyer, Zhai and Kolesnikov (2022), arXiv:2205.01580.
    """

    def __init__(  # noqa: PLR0913 - the sizes of a network, all by name
        self,
        *,
        image_size: int,
        channels: int,
        classes: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "image_size": image_size,
            "channels": channels,
            "classes": classes,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"MiniViT: {name}={size} must be at least 1")
        if image_size % patch_size:
            raise ConfigError(
                f"MiniViT: patch_size={patch_size} does not divide image_size={image_size}; "
                "choose a divisor"
            )
        if width % heads:
            raise ConfigError(
                f"MiniViT: width={width} is no multiple of heads={heads}; choose a multiple"
            )
        if round(width * mlp_ratio) < 1:
            raise ConfigError(
                f"MiniViT: mlp_ratio={mlp_ratio} leaves no hidden unit at width={width}; need "
                "width * mlp_ratio of at least 1"
            )
        self.image_shape = (channels, image_size, image_size)
        self.patch_size = patch_size
        self.patch_embed = nn.Linear(channels * patch_size**2, width)
        self.position = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2, width))
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: Xavier-uniform matrices, zero biases, normal positions."""
        nn.init.normal_(self.position, std=EMBEDDING_STD, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        """Class scores ``(batch, classes)`` of images ``(batch, channels, size, size)``.

        Raises:
            ShapeError: The images have another shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ShapeError(
                f"MiniViT: got images {tuple(images.shape)}, need (batch, "
                f"{', '.join(map(str, self.image_shape))})"
            )
        patches = F.pixel_unshuffle(images, self.patch_size).flatten(2).transpose(1, 2)
        x = self.patch_embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x).mean(dim=1))
        return scores
