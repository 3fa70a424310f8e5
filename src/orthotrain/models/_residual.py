"""The two residual blocks of a ResNet."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Module:
    """Convolution without bias that keeps the size at stride one."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
    )


def shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    """What is added to a block's change: the input, projected only where its shape differs."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; gives ``width`` channels."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_channels, width, stride=stride)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d p q"]:
        """``(batch, in_channels, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        change = F.relu(self.norm1(self.conv1(x)))
        change = self.norm2(self.conv2(change))
        return F.relu(self.shortcut(x) + change)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; gives ``4 * width`` channels; the 3x3 holds the stride."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = convolution(in_channels, width, 1, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, out_channels, 1, 1)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride=stride)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d p q"]:
        """``(batch, in_channels, h, w)`` to ``(batch, 4 * width, h / stride, w / stride)``."""
        change = F.relu(self.norm1(self.conv1(x)))
        change = F.relu(self.norm2(self.conv2(change)))
        change = self.norm3(self.conv3(change))
        return F.relu(self.shortcut(x) + change)
