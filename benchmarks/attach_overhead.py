"""What ``attach`` costs in a step in which nothing is due: at most 0.5 %."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

import orthotrain
from _measure import interleaved_seconds, ratio, report, verdict
from orthotrain.models.mini_vit import MiniViT

TARGET_PERCENT = 0.5


def training(*, attached: bool, batch: int) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    """A mini ViT of the CIFAR-10 recipe's size with its optimizer."""
    generator = torch.Generator().manual_seed(0)
    model = MiniViT(
        image_size=32, channels=3, classes=10, patch_size=8, width=192, depth=4, heads=6,
        generator=generator,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    handle = None
    if attached:
        handle = orthotrain.attach(
            model, optimizer, orthotrain.AdaptiveLowRank(delay_steps=10**9, every_steps=10**9)
        )
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return model, optimizer, (step, handle)


def hook_seconds(optimizer: torch.optim.Optimizer, *, calls: int) -> float:
    """Median seconds of the step hooks alone, by calling an optimizer with nothing to do."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = None
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _, plain_optimizer, (plain, _) = training(attached=False, batch=arguments.batch)
    _, hooked_optimizer, (hooked, handle) = training(attached=True, batch=arguments.batch)
    seconds = interleaved_seconds({"plain": plain, "attached": hooked}, rounds=arguments.rounds)
    step = statistics.median(seconds["plain"])
    whole = ratio(seconds, "attached", "plain")
    extra = hook_seconds(hooked_optimizer, calls=2000) - hook_seconds(plain_optimizer, calls=2000)
    percent = 100 * extra / step
    report(
        f"attach with nothing due, batch {arguments.batch}, mini ViT of cifar10-minivit (cpu)",
        ("what", "measured", "target"),
        [
            ("step without attach", f"{1e3 * step:.2f} ms", ""),
            ("whole step, ratio", whole, "within the spread of timing"),
            ("hooks alone", f"{1e6 * extra:.1f} us", ""),
            ("hooks alone, share of a step", f"{percent:.4f} %", verdict(percent, TARGET_PERCENT)),
        ],
    )
    del handle


if __name__ == "__main__":
    main()
