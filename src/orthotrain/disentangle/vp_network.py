"""The network that tells from two images which latent coordinate moved."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import seeded_initialization


class VariationClassifier(nn.Module):
    """Convolutions over the difference of two images, to one logit a latent coordinate.

    Conv7x7 stride 2, Conv3x3, max pool, two times Conv3x3 with twice the channels, global average
    pool, linear; batch norm and ReLU after each convolution.

    Args:
        factors: Coordinates to choose from.
        channels: Of the images; 1 and 3 alike.
        width: Channels of the first two convolutions, 64 as published.
        generator: Draws the weights; torch's global state is left alone. None follows that state.

    Shape:
        In ``(n, channels, h, w)``, ``x1 - x2``; out ``(n, factors)``.

    Source:
        Zhu, Xu and Tao (2020), arXiv:2007.12885, the published network with the difference of the
        images as its input.
    """

    def __init__(
        self,
        factors: int,
        *,
        channels: int = 3,
        width: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("factors", factors), ("channels", channels), ("width", width)):
            require_count("VariationClassifier", name, value, at_least=1)
        random = torch.default_generator if generator is None else generator
        with seeded_initialization(random):
            self.features = nn.Sequential(
                *_block(channels, width, kernel=7, stride=2),
                *_block(width, width),
                nn.MaxPool2d(3, stride=2, padding=1),
                *_block(width, 2 * width),
                *_block(2 * width, 4 * width),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            self.head = nn.Linear(4 * width, factors)

    def forward(self, difference: Float[Tensor, "n c h w"]) -> Float[Tensor, "n factors"]:
        """Logits."""
        logits: Tensor = self.head(self.features(difference))
        return logits


def _block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
