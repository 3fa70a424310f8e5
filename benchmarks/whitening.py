"""A ResNet-18 CIFAR training step with whitening after the stem, against batch norm there.

The whole step is forward, backward and SGD with momentum, batch 128, 64 channels in one group. The
second table is the layer alone, which the whole step hides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from _measure import interleaved_seconds, kept_bytes, ratio, report, train_step, verdict
from orthotrain.layers import DecorrelatedBatchNorm2d
from orthotrain.models.resnet import ResNet

TARGET = 1.10
RIDGE = 1e-2


def step_of(
    norm: Callable[[int], nn.Module], images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], None]:
    """A training step of a network of its own; all start from the same weights."""
    network = ResNet(classes=10, norm=norm, generator=torch.Generator().manual_seed(0))
    network.to(images.device, memory_format=memory_format_of(images))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def memory_format_of(x: torch.Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def whole_step(arguments: argparse.Namespace, memory_format: torch.memory_format) -> tuple:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(arguments.batch, 3, 32, 32, generator=generator).to(arguments.device)
    images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(10, (arguments.batch,), generator=generator).to(arguments.device)
    steps = {
        "batch norm": step_of(nn.BatchNorm2d, images, labels),
        "whitening": step_of(partial(DecorrelatedBatchNorm2d, ridge=RIDGE), images, labels),
    }
    seconds = interleaved_seconds(steps, rounds=arguments.rounds, warmup=1)
    time = ratio(seconds, "whitening", "batch norm")
    milliseconds = min(seconds["batch norm"]) * 1e3
    return name_of(memory_format), f"{milliseconds:.0f}", time, verdict(time.median, TARGET)


def layer_alone(
    arguments: argparse.Namespace, memory_format: torch.memory_format, group_size: int
) -> tuple:
    generator = torch.Generator().manual_seed(2)
    shape = (arguments.batch, 64, 32, 32)
    x, grad = (
        torch.randn(shape, generator=generator)
        .to(arguments.device)
        .contiguous(memory_format=memory_format)
        for _ in range(2)
    )
    x.requires_grad_()
    layers = {
        "batch norm": nn.BatchNorm2d(64).to(x.device),
        "whitening": DecorrelatedBatchNorm2d(64, group_size=group_size, ridge=RIDGE).to(x.device),
    }

    def finished(step: Callable[[], None]) -> None:
        step()
        if x.is_cuda:
            torch.cuda.synchronize()

    steps = {name: partial(finished, train_step(m, x, grad)) for name, m in layers.items()}
    seconds = interleaved_seconds(steps, rounds=arguments.layer_rounds)
    kept = kept_bytes(layers["whitening"], x) / kept_bytes(layers["batch norm"], x)
    milliseconds = min(seconds["batch norm"]) * 1e3
    return (
        name_of(memory_format), group_size, f"{milliseconds:.1f}",
        ratio(seconds, "whitening", "batch norm"), f"{kept:.2f}",
    )  # fmt: skip


def name_of(memory_format: torch.memory_format) -> str:
    return str(memory_format).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="0: the layer alone")
    parser.add_argument("--layer-rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    formats = (torch.contiguous_format, torch.channels_last)
    if arguments.rounds:
        report(
            f"whitening after the stem of a ResNet-18, whole step, batch {arguments.batch}, "
            f"{arguments.device}",
            ("memory", "batch norm ms", "time to batch norm", "target"),
            [whole_step(arguments, memory_format) for memory_format in formats],
        )
    report(
        "the layer alone, forward and backward, 64 channels of 32x32",
        ("memory", "group size", "batch norm ms", "time to batch norm", "bytes kept"),
        [layer_alone(arguments, f, size) for f in formats for size in (64, 16)],
    )


if __name__ == "__main__":
    main()
