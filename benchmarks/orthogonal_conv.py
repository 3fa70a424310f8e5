"""What ``OrthogonalConv2d`` costs beside ``nn.Conv2d``, by both methods, trained and evaluated."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from _measure import interleaved_seconds, kept_bytes, ratio, report, train_step, verdict
from orthotrain.layers import OrthogonalConv2d, orthogonal_weight

_TRAIN, _EVALUATE = 2.0, 1.7


def layers(inputs: int, outputs: int) -> dict[str, nn.Module]:
    """A plain 3x3 convolution and its orthogonal rivals."""
    found: dict[str, nn.Module] = {
        "nn.Conv2d": nn.Conv2d(inputs, outputs, 3, padding=1),
        "nn.Conv2d, circular": nn.Conv2d(
            inputs, outputs, 3, padding=1, padding_mode="circular"
        ),
        "OrthogonalConv2d, kernel": OrthogonalConv2d(inputs, outputs, 3, method="kernel"),
        "OrthogonalConv2d, skew": OrthogonalConv2d(inputs, outputs, 3, method="skew"),
        "orthogonal_weight": orthogonal_weight(nn.Conv2d(inputs, outputs, 3, padding=1)),
    }  # fmt: skip
    if find_spec("orthogonium") is not None:
        from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

        peer: nn.Module = AdaptiveOrthoConv2d(inputs, outputs, 3, padding_mode="circular")
        found["orthogonium, AOC"] = peer
    return found


def evaluation(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A forward pass without gradients."""
    layer.eval()

    @torch.no_grad()
    def call() -> Tensor:
        y: Tensor = layer(x)
        return y

    return call


@torch.no_grad()
def deviation(layer: nn.Module, channels: int) -> float:
    """How far singular values of the Jacobian are from one, 6 x 6 pixels, circular or not."""
    side = 6
    pixels = torch.eye(channels * side**2).view(-1, channels, side, side)
    columns = layer(pixels) - layer(torch.zeros_like(pixels[:1]))
    values = torch.linalg.svdvals(columns.flatten(1).double())
    return float((values - 1).abs().max())


def table(inputs: int, outputs: int, side: int, batch: int, rounds: int) -> None:
    """One size and batch, training and evaluation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, side, side, generator=generator)
    grad = torch.randn(batch, outputs, side, side, generator=generator)
    # At a stem the input's gradient is left out.
    x.requires_grad_(inputs == outputs)
    found = layers(inputs, outputs)
    # A pass of one picture is shorter than what a busy machine gives another process at a time.
    clock = time.process_time if batch == 1 else time.perf_counter
    trained = interleaved_seconds(
        {name: train_step(layer, x, grad) for name, layer in found.items()},
        rounds=rounds,
        clock=clock,
    )
    kept = {name: kept_bytes(layer, x) / 2**20 for name, layer in found.items()}
    evaluated = interleaved_seconds(
        {name: evaluation(layer, x) for name, layer in found.items()},
        rounds=2 * rounds,
        clock=clock,
    )
    rows = []
    for name, layer in found.items():
        times = [ratio(seconds, name, "nn.Conv2d") for seconds in (trained, evaluated)]
        met = "-"
        if name == "OrthogonalConv2d, kernel":
            pairs = zip(times, (_TRAIN, _EVALUATE), strict=True)
            met = ", ".join(verdict(time.median, target) for time, target in pairs)
        off = deviation(layer, inputs) if inputs * side <= 2048 else float("nan")
        rows.append((name, *times, f"{kept[name]:.1f} MiB", f"{off:.1e}", met))
    report(
        f"3x3, {inputs} -> {outputs} channels at {side}x{side}, batch {batch}; a step of training "
        f"{'with' if x.requires_grad else 'without'} the input's gradient, a pass of evaluation"
        f"{'; CPU time' if batch == 1 else ''}",
        ("layer", "training, ratio", "evaluation, ratio", "kept", "Jacobian off one", "target"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="this batch only, 1 or 32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if find_spec("orthogonium") is None:
        print("orthogonium is not installed: pip install orthogonium")
    for inputs, outputs, side, batch, more in (
        (64, 64, 32, 32, 1), (64, 64, 32, 1, 4), (3, 64, 32, 32, 1), (256, 256, 8, 32, 1),
    ):  # fmt: skip
        if arguments.batch in (None, batch):
            table(inputs, outputs, side, batch, more * arguments.rounds)


if __name__ == "__main__":
    main()
