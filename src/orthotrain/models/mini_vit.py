"""A small vision transformer: the network of the recipes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models.transformer import Block, check_sizes

# Standard deviation of position and class embeddings, as in Dosovitskiy et al. (2021).
EMBEDDING_STD = 0.02


@checked
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
        }
        check_sizes("MiniViT", heads=heads, mlp_ratio=mlp_ratio, sizes=sizes)
        if image_size % patch_size:
            raise ConfigError(
                f"MiniViT: patch_size={patch_size} does not divide image_size={image_size}; "
                "choose a divisor"
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

    @checked
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
