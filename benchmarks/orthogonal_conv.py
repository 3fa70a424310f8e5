"""What ``OrthogonalConv2d`` costs at the stem of a CIFAR ResNet, against ``nn.Conv2d``."""

from __future__ import annotations

import argparse

import torch
from torch import nn

from _measure import interleaved_seconds, kept_bytes, ratio, report, train_step
from orthotrain.layers import OrthogonalConv2d, orthogonal_weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, 3, 32, 32)
    # The input gradient is left out, as at a stem.
    x = torch.randn(shape, generator=generator)
    grad = torch.randn(arguments.batch, 64, 32, 32, generator=generator)
    layers: dict[str, nn.Module] = {
        "nn.Conv2d": nn.Conv2d(3, 64, 3, padding=1),
        "nn.Conv2d 64 -> 64": nn.Conv2d(64, 64, 3, padding=1),
        "orthogonal_weight": orthogonal_weight(nn.Conv2d(3, 64, 3, padding=1)),
        "OrthogonalConv2d": OrthogonalConv2d(3, 64, 3),
    }
    wide = torch.randn(arguments.batch, 64, 32, 32, generator=generator)
    inputs = {name: wide if "64 -> 64" in name else x for name in layers}
    steps = {name: train_step(layer, inputs[name], grad) for name, layer in layers.items()}
    seconds = interleaved_seconds(steps, rounds=arguments.rounds)
    rows = []
    for name, layer in layers.items():
        time = ratio(seconds, name, "nn.Conv2d")
        kept = kept_bytes(layer, inputs[name]) / 2**20
        best = min(seconds[name])
        rows.append((name, f"{1e3 * best:.2f} ms", time, f"{kept:.1f} MiB"))
    report(
        f"Stem of a CIFAR ResNet, 3 -> 64 at 32x32, kernel 3, batch {arguments.batch}: forward "
        "and backward in training, without the input's gradient",
        ("layer", "fastest", "time, ratio to nn.Conv2d", "kept for backward"),
        rows,
    )


if __name__ == "__main__":
    main()
