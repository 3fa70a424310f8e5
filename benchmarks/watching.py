"""What watching costs: all weights of a GPT, and the condition of a stem with whitening behind it.

In the GPT, ``BasisStability`` and ``ConditionMonitor`` look at every linear layer; a look stands
beside a training step and beside the look as it was before (``_before_watching.py``). Peak memory
is what a look takes beyond what stood before it, as the kernel counts resident pages, over the
bytes of the model. What a method keeps from look to look is in memory before and after a look, so
it stands in a column of its own. The gradients are those of the step, so of fewer tokens than
channels they have a deficient rank. ``attach`` is timed at growing numbers of layers.

In a ResNet-18 CIFAR step with whitening behind the stem, batch 128 and 64 channels in one group,
watched are the covariance that enters the whitening and the weight, gradient and update of the
stem. That look is a few percent of a step at most and drowns in the noise of a whole step, so it is
also timed by itself, in turn with the step it is a share of.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import orthotrain
from _before_watching import BasisLooks, Conditions
from _measure import interleaved_seconds, ratio, report, verdict
from orthotrain.diagnostics._layer_covariance import covariance_of
from orthotrain.diagnostics._reading import read_covariance
from orthotrain.layers import DecorrelatedBatchNorm2d, GlobalCovariancePool
from orthotrain.linalg import condition_readings
from orthotrain.models import GPT
from orthotrain.models.resnet import ResNet

RIDGE = 1e-2
STATUS = Path("/proc/self/status")


def gpt(
    arguments: argparse.Namespace, depth: int
) -> tuple[GPT, torch.Tensor, torch.optim.Optimizer]:
    """The model, a batch of tokens and its optimizer; gradients stand ready."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(
        context=arguments.tokens, width=arguments.gpt_width, depth=depth,
        heads=8, generator=generator,
    )  # fmt: skip
    tokens = torch.randint(256, (1, arguments.tokens), generator=generator)
    return model, tokens, torch.optim.SGD(model.parameters(), lr=1e-3)


def backward(model: GPT, tokens: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()


def _bytes(state: object) -> int:
    """Of all tensors in nested containers."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state
    return sum(map(_bytes, parts)) if isinstance(state, dict | list) else 0


def looks(
    arguments: argparse.Namespace, depth: int, kept: dict[str, int]
) -> dict[str, Callable[[], object]]:
    """A step, and the looks as they are and as they were, each at a model of its own.

    Bytes that a method keeps between looks are written into ``kept``.
    """
    model, tokens, optimizer = gpt(arguments, depth)

    def step() -> None:
        backward(model, tokens)
        optimizer.step()

    candidates: dict[str, Callable[[], object]] = {"step": step}
    for name, method in (
        ("stability", orthotrain.BasisStability(every_steps=1)),
        ("condition", orthotrain.ConditionMonitor("*", every_steps=1, covariances=())),
    ):
        watched, batch, its = gpt(arguments, depth)
        backward(watched, batch)
        handle = orthotrain.attach(watched, its, method, auto=False)
        handle.before_step()
        its.step()
        handle.step()

        def look(handle: orthotrain.Handle = handle, its: torch.optim.Optimizer = its) -> None:
            handle.before_step()
            its.step()
            handle.step()

        candidates[name] = look
        kept[name] = _bytes(handle.state_dict()["methods"])
    model, tokens, optimizer = gpt(arguments, depth)
    backward(model, tokens)
    candidates["stability before"] = BasisLooks(model)
    conditions = Conditions(model)

    def look_before() -> None:
        conditions.before_step()
        optimizer.step()
        conditions.after_step()

    candidates["condition before"] = look_before
    return candidates


def peak_bytes(run: Callable[[], object]) -> int:
    """Resident bytes that a call takes at most, beyond those before it. Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator holds back would hide the peak
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def whole_gpt(arguments: argparse.Namespace) -> list[tuple[object, ...]]:
    kept: dict[str, int] = {}
    seconds = interleaved_seconds(
        looks(arguments, arguments.gpt_depth, kept), rounds=arguments.rounds, warmup=1
    )
    deep = looks(arguments, arguments.peak_depth, kept)
    model_bytes = 4 * sum(p.numel() for p in gpt(arguments, arguments.peak_depth)[0].parameters())
    rows = []
    for name in ("stability", "condition"):
        before = f"{name} before"
        time = ratio(seconds, name, before)
        peak, peak_before = (peak_bytes(deep[each]) / model_bytes for each in (name, before))
        rows.append(
            (
                name, f"{ratio(seconds, before, 'step').median:.1f}",
                f"{ratio(seconds, name, 'step').median:.1f}", time, verdict(time.median, 0.25),
                f"{peak_before:.2f}", f"{peak:.2f}", verdict(round(peak, 2), 0.2),
                f"{kept[name] / model_bytes:.2f}",
            )
        )  # fmt: skip
    return rows


def attach_seconds(layers: int) -> tuple[object, ...]:
    """Seconds to attach each method to so many small layers."""
    found = []
    for method in (
        orthotrain.BasisStability(every_steps=1),
        orthotrain.ConditionMonitor("*", covariances=()),
    ):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        start = time.perf_counter()
        orthotrain.attach(model, optimizer, method).detach()
        found.append(f"{1e3 * (time.perf_counter() - start):.0f}")
    return layers, *found


def training(arguments: argparse.Namespace, width: int, *, watched: bool) -> Callable[[], None]:
    """A training step of a network of its own; all start from the same weights."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch, 3, 32, 32, generator=generator).to(arguments.device)
    labels = torch.randint(10, (arguments.batch,), generator=generator).to(arguments.device)
    norm = partial(DecorrelatedBatchNorm2d, ridge=RIDGE)
    network = ResNet(width=width, classes=10, norm=norm, generator=generator).to(images.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    if watched:
        # The optimizer keeps it at work.
        orthotrain.attach(network, optimizer, orthotrain.ConditionMonitor("stem"))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        _wait(arguments)

    return step


def parts_of_a_look(arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What a look does, one part each, with pooling for comparison."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(arguments.batch, 64, 32, 32, generator=generator).to(arguments.device)
    norm = DecorrelatedBatchNorm2d(64, ridge=RIDGE).to(x.device)
    weight = torch.randn(64, 27, generator=generator)
    reduced = torch.randn(arguments.batch, 256, 14, 14, generator=generator).to(arguments.device)
    pool = GlobalCovariancePool(256).to(x.device)
    whitened, pooled = covariance_of(norm, x), covariance_of(pool, reduced)

    def forming(layer: nn.Module, given: torch.Tensor) -> Callable[[], None]:
        def form() -> None:
            covariance_of(layer, given)
            _wait(arguments)

        return form

    return {
        "form the covariance, 64 channels of 32x32": forming(norm, x),
        "read it": lambda: read_covariance("norm", whitened, rtol=None),
        "read weight, gradient and update, 64x27": lambda: [
            condition_readings(weight) for _ in range(3)
        ],
        "pooling: form 8 of 256 channels of 14x14": forming(pool, reduced),
        "pooling: read them": lambda: read_covariance("pool", pooled, rtol=None),
    }


def _wait(arguments: argparse.Namespace) -> None:
    if arguments.device != "cpu":
        torch.cuda.synchronize()


def share_of_a_step(arguments: argparse.Namespace, width: int) -> tuple[object, ...]:
    """The look in turn with a step without and one with the monitor."""
    parts = list(parts_of_a_look(arguments).values())[:3]
    candidates = {
        "plain": training(arguments, width, watched=False),
        "watched": training(arguments, width, watched=True),
        "look": lambda: [part() for part in parts],
    }
    seconds = interleaved_seconds(candidates, rounds=arguments.rounds, warmup=1)
    share = ratio(seconds, "look", "plain").median
    milliseconds = 1e3 * statistics.median(seconds["plain"])
    whole = ratio(seconds, "watched", "plain")
    return width, f"{milliseconds:.0f}", f"{100 * share:.2f} %", f"{10 * share:.3f} %", whole


def microseconds_without_a_look() -> float:
    """What the hooks add to a forward and a step with next to nothing to do."""

    def median_seconds(*, watched: bool) -> float:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        if watched:
            monitor = orthotrain.ConditionMonitor("0", every_steps=10**9, covariances="1")
            orthotrain.attach(model, optimizer, monitor)
        x = torch.ones(2, 2)
        seconds = []
        for _ in range(3000):
            start = time.perf_counter()
            model(x)
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    return 1e6 * (median_seconds(watched=True) - median_seconds(watched=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpt-width", type=int, default=512)
    # Layers are alike, so that two blocks tell the ratio of times, and 50 million numbers the peak.
    parser.add_argument("--gpt-depth", type=int, default=2)
    parser.add_argument("--peak-depth", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 16])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report(
        f"a look at all linear layers of a GPT of width {arguments.gpt_width} and depth "
        f"{arguments.gpt_depth} (peak: {arguments.peak_depth}), {arguments.tokens} tokens per step",
        (
            "method", "steps before", "steps", "time to before", "target",
            "peak before", "peak over weights", "target", "kept between looks",
        ),
        whole_gpt(arguments),
    )  # fmt: skip
    report(
        "attach to small layers",
        ("layers", "BasisStability ms", "ConditionMonitor ms"),
        [attach_seconds(layers) for layers in (125, 250, 500, 1000)],
    )
    report(
        f"the monitor in a ResNet-18 step, 32x32, batch {arguments.batch}, {arguments.device}",
        ("width", "step ms", "every_steps=1", "every_steps=10", "whole step, every_steps=1"),
        [share_of_a_step(arguments, width) for width in arguments.widths],
    )
    parts = parts_of_a_look(arguments)
    seconds = interleaved_seconds(parts, rounds=15)
    report(
        "the parts of a look",
        ("what", "ms"),
        [(name, f"{1e3 * statistics.median(seconds[name]):.2f}") for name in parts],
    )
    print(f"\na step without a look: {microseconds_without_a_look():.0f} us")


if __name__ == "__main__":
    main()
