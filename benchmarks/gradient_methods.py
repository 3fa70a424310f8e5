"""What NOG and OLR cost on the stem of a ResNet-18 CIFAR step: at most 2 % of it."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import orthotrain
from _measure import interleaved_seconds, ratio, report, verdict
from orthotrain.methods import Handle, Method
from orthotrain.models.resnet import ResNet

TARGET_PERCENT = 2.0
STEM = "stem"


def methods_of(*, record_every: int) -> dict[str, tuple[Method, ...]]:
    """The candidates; the first rows are what the target is about."""
    nog, olr = orthotrain.NearestOrthogonalGradient, orthotrain.OptimalLearningRate
    often = {"record_every": record_every}
    return {
        "NOG": (nog(STEM, **often),),
        "OLR": (olr(STEM, **often),),
        "NOG + OLR": (nog(STEM, **often), olr(STEM, **often)),
        "NOG + OLR, no records": (
            nog(STEM, record_every=10**9),
            olr(STEM, record_every=10**9),
        ),
        "NOG on the update + OLR to the matrix": (
            nog(STEM, when="update", **often),
            olr(STEM, target="matrix", direction="update", floor=0.1, **often),
        ),
        "orthogonal penalty": (orthotrain.OrthogonalPenalty(STEM, weight=1e-3),),
        "spectral normalization": (orthotrain.SpectralNormalization(STEM),),
        "retraction": (orthotrain.Retraction(STEM),),
    }


@dataclass
class Training:
    """One network with its optimizer and methods, and its step."""

    step: Callable[[], None]
    handle: Handle | None


def training(methods: tuple[Method, ...], *, batch: int, width: int) -> Training:
    """The network of the published CIFAR runs with plain SGD, on noise."""
    generator = torch.Generator().manual_seed(0)
    model = ResNet(classes=10, width=width, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    handle = orthotrain.attach(model, optimizer, *methods) if methods else None
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return Training(step, handle)


def hook_seconds(methods: tuple[Method, ...], *, calls: int) -> float:
    """Median seconds a step of all hooks of ``methods``, on a stem alone with drawn gradients."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential()
        model.add_module(STEM, nn.Conv2d(3, 64, 3, padding=1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    handle = orthotrain.attach(model, optimizer, *methods)
    weight = next(model.parameters())
    seconds = []
    for _ in range(calls):
        weight.grad = torch.randn(weight.shape, generator=generator)
        before = sum(handle.seconds.values())
        optimizer.step()
        seconds.append(sum(handle.seconds.values()) - before)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--calls", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    candidates = methods_of(record_every=1)
    both = candidates["NOG + OLR"]
    plain = training((), batch=arguments.batch, width=arguments.width)
    hooked = training(both, batch=arguments.batch, width=arguments.width)
    seconds = interleaved_seconds(
        {"plain": plain.step, "attached": hooked.step}, rounds=arguments.rounds, warmup=1
    )
    assert hooked.handle is not None
    step = statistics.median(seconds["plain"])
    inside = sum(hooked.handle.seconds.values()) / hooked.handle.run.step
    percent = 100 * inside / step
    rows: list[tuple[object, ...]] = [
        ("step without methods", f"{1e3 * step:.1f} ms", "", ""),
        ("whole step with NOG + OLR, ratio", ratio(seconds, "attached", "plain"), "", ""),
        (
            "NOG + OLR, inside the step",
            f"{1e3 * inside:.3f} ms",
            f"{percent:.4f} %",
            verdict(percent, TARGET_PERCENT),
        ),
    ]
    for name, methods in candidates.items():
        alone = hook_seconds(methods, calls=arguments.calls)
        rows.append((f"{name}, alone", f"{1e3 * alone:.3f} ms", f"{100 * alone / step:.4f} %", ""))
    report(
        f"gradient methods on the stem (64x27) of a ResNet-18 of width {arguments.width}, "
        f"CIFAR, batch {arguments.batch}",
        ("what", "measured", "share of a step", "target"),
        rows,
    )


if __name__ == "__main__":
    main()
