"""Residual networks whose stem, first norm and pooling can be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models._residual import BasicBlock, Bottleneck, convolution

Depth = Literal[18, 50, 101]
Stem = Literal["cifar", "strided", "imagenet"]
#: Block and blocks per stage, table 1 of He et al. (2016).
STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
# Kernel and stride of the stem, and whether a max-pool follows it.
_STEMS: dict[str, tuple[int, int, bool]] = {
    "cifar": (3, 1, False),
    "strided": (3, 2, False),
    "imagenet": (7, 2, True),
}


@checked
class ResNet(nn.Module):
    """ResNet-18, -50 or -101 with the places where spectral layers go kept open.

    ``stem`` (a convolution), ``norm``, ReLU and perhaps a max-pool; ``layers``, four stages of
    residual blocks; ``pool``; ``head`` (linear). A spectral layer replaces ``norm`` or ``pool``,
    and the weight before it is ``stem.weight`` or the pool's own reduction.

    Args:
        depth: 18 (two 3x3 convolutions per block), 50 or 101 (bottlenecks of four times the
            width).
        width: Channels of the first stage; each further stage has twice as many.
        stem_channels: Outputs of the stem, independent of ``width``: a narrow network keeps a
            stem of 64 channels that sees 27 numbers.
        classes: Outputs.
        channels: Image channels.
        stem: ``"cifar"`` is 3x3 with stride 1 and no pooling, ``"strided"`` the same with stride
            2, for a quarter of the work, ``"imagenet"`` 7x7 with stride 2 and a 3x3 max-pool
            with stride 2.
        norm: Makes the norm right after the stem from its number of channels; None is
            ``nn.BatchNorm2d``. All other norms are ``nn.BatchNorm2d``.
        stem_conv: Makes the stem from (inputs, outputs, kernel, stride); None is a convolution
            without bias, padded to keep the size at stride 1.
        pool: Maps ``(batch, c, h, w)`` to ``(batch, pool_features)``; None averages over all
            places. Its plain convolutions are drawn anew with those of the network.
        pool_features: Outputs of ``pool``; needed with it and refused without.
        last_stride: Stride of the last stage; 1 leaves covariance pooling more samples.
        generator: Source of the initial weights; torch's global state then stays as it is.
            None takes the global state.

    Raises:
        ConfigError: A size below one, an unknown depth or stem, or one of ``pool`` and
            ``pool_features`` without the other.

    Source:
        He, Zhang, Ren and Sun (2016), arXiv:1512.03385, with the stride of a bottleneck in its
        3x3 convolution, as is common since. Initial weights: He et al. (2015),
        arXiv:1502.01852, by outputs; the head is uniform within ``inputs ** -0.5``, biases zero.
    """

    def __init__(  # noqa: PLR0913 - the sizes and open places of a network, all by name
        self,
        *,
        depth: Depth = 18,
        width: int = 64,
        stem_channels: int = 64,
        classes: int,
        channels: int = 3,
        stem: Stem = "cifar",
        norm: Callable[[int], nn.Module] | None = None,
        stem_conv: Callable[[int, int, int, int], nn.Module] | None = None,
        pool: nn.Module | None = None,
        pool_features: int | None = None,
        last_stride: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "width": width,
            "stem_channels": stem_channels,
            "classes": classes,
            "channels": channels,
            "last_stride": last_stride,
            "pool_features": 1 if pool_features is None else pool_features,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"ResNet: {name}={size} must be at least 1")
        if depth not in STAGES or stem not in _STEMS:
            raise ConfigError(
                f"ResNet: got depth={depth!r} and stem={stem!r}, need a depth of "
                f"{list(STAGES)} and a stem of {list(_STEMS)}"
            )
        if (pool is None) != (pool_features is None):
            raise ConfigError(
                f"ResNet: got pool={type(pool).__name__} with pool_features={pool_features}; "
                "give both, or neither for average pooling"
            )
        self.channels = channels
        block, blocks = STAGES[depth]
        kernel, stride, max_pool = _STEMS[stem]
        with drawing_from(generator):
            self.stem = (stem_conv or convolution)(channels, stem_channels, kernel, stride)
            self.norm = (norm or nn.BatchNorm2d)(stem_channels)
            self.shrink = nn.MaxPool2d(3, stride=2, padding=1) if max_pool else nn.Identity()
            inputs = stem_channels
            stages = []
            for i, count in enumerate(blocks):
                stage_width = width * 2**i
                strides = [(1, 2, 2, last_stride)[i], *[1] * (count - 1)]
                stage = []
                for stride in strides:
                    stage.append(block(inputs, stage_width, stride=stride))
                    inputs = stage_width * block.expansion
                stages.append(nn.Sequential(*stage))
            self.layers = nn.Sequential(*stages)
            average = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.pool = average if pool is None else pool
            self.head = nn.Linear(inputs if pool_features is None else pool_features, classes)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the plain convolutions and the head anew; batch norms start neutral.

        A stem or pool of another kind keeps the weights it drew for itself.
        """
        for module in self.modules():
            # Not subclasses: a constrained convolution has no weight that could be written to.
            if type(module) is nn.Conv2d:
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        bound = self.head.in_features**-0.5
        nn.init.uniform_(self.head.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.head.bias)

    @checked
    def forward(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        """Class scores ``(batch, classes)`` of images ``(batch, channels, height, width)``.

        Raises:
            ShapeError: Images without a batch, of other channels, or none at all.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or images.numel() == 0:
            raise ShapeError(
                f"ResNet: got images {tuple(images.shape)}, need (batch, {self.channels}, height, "
                "width) with at least one image"
            )
        x = self.shrink(F.relu(self.norm(self.stem(images))))
        scores: Tensor = self.head(self.pool(self.layers(x)))
        return scores


def feature_channels(*, depth: Depth, width: int) -> int:
    """Channels that the last stage of a ``ResNet`` gives to its pool."""
    block, blocks = STAGES[depth]
    return (width << (len(blocks) - 1)) * block.expansion


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let modules that draw from torch's global state follow ``generator`` instead."""
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield
