"""Polar factor: time and error over condition 1e1 to 1e8, beside the limit and two SVDs.

Yardsticks, all for float32 input on one CPU thread:

- ``limit``: one and a half float64 products of that size and an ``eigh``, in the layout of the
  input. The Gram route cannot be faster where its Gram matrix is formed by halves.
- ``svd``: ``torch.linalg.svd`` of the matrix as it is, thin; ``svd transposed``: of a wide matrix
  its transpose, as careful users write it.
- ``svd float64``: the latter in float64, rounded at the end: what is as exact as ``auto``. A
  float32 SVD has an error of 4e-5 at condition 1e4 and 3e-2 at 1e7 (64x27, even logs).

Claims: ``auto`` takes at most 1.15 of the limit where the smaller side is 64 or more and condition
up to 1e4; below that side, and at every condition, at most as long as ``svd``; 6x32768 at most .15
of it. The error is that of one rounding. A whole step of NOG on the stem of a ResNet, 64x27,
takes at most as long as an SVD.

Matrices of up to 64x64 are timed between steps of a small network, which is where NOG meets them:
called again and again, three SVDs in a row would have their code in the cache, and each other
candidate not.

The error is ``|Q - Q*|_F / sqrt(k)`` against the SVD of the same matrix in float64, all directions
kept (``rtol=0``). Time on the CPU is the processor's for this thread, so that jobs beside it do
not count.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import _muon

import orthotrain
from _measure import Ratio, interleaved_seconds, ratio, report, verdict
from orthotrain.linalg import polar_factor

OVER_LIMIT, OVER_SVD, SKINNY = 1.15, 1.0, 0.15
CONDITIONS = tuple(10.0**exponent for exponent in range(1, 9))
SHAPES = ((6, 32768), (64, 27), (64, 64), (256, 2304), (768, 768))
# Entries of what is timed between steps of a network.
SMALL = 64 * 64
METHOD_SHAPES = ((64, 27), (256, 2304))
METHOD_CONDITIONS = (1e1, 1e4, 1e7)
METHODS = ("auto", "svd", "gram", "qdwh", "newton_schulz", "polar_express")
# As far as eigenvectors of the Gram matrix are taken as they are.
PLAIN = 1e4


def spectrum(shape: str, k: int, condition: float) -> Tensor:
    """Evenly spaced in the logarithm, or half of the values small: hardest for a Gram matrix."""
    values = torch.ones(k, dtype=torch.float64)
    if shape == "half small":
        values[k // 2 :] = torch.linspace(2, 1, k - k // 2, dtype=torch.float64) / condition
        return values
    return (1 / torch.tensor(condition).double()) ** torch.linspace(0, 1, k, dtype=torch.float64)


def matrix(values: Tensor, m: int, n: int, generator: torch.Generator) -> Tensor:
    """Float32 ``(m, n)`` with the given singular values and random singular vectors."""
    u, v = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator).double()).Q
        for size in (m, n)
    )
    return ((u * values) @ v.mT).float().contiguous()


def torch_svd(a: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    return u @ vh


def turned_svd(a: Tensor) -> Tensor:
    """The same, of the transpose where that is tall."""
    return torch_svd(a) if a.shape[0] >= a.shape[1] else torch_svd(a.mT).mT


def muon_float32(a: Tensor) -> Tensor:
    """The iteration of ``torch.optim.Muon`` without its cast to bfloat16."""
    x = a.mT if a.shape[0] > a.shape[1] else a
    x = x / x.norm()
    for _ in range(_muon.DEFAULT_NS_STEPS):
        gram = x @ x.mT
        update = torch.addmm(gram, gram, gram, beta=_muon.DEFAULT_B, alpha=_muon.DEFAULT_C)
        x = torch.addmm(x, update, x, beta=_muon.DEFAULT_A)
    return x.mT if a.shape[0] > a.shape[1] else x


def mine(method: str, **settings: int) -> Callable[[Tensor], Tensor]:
    return lambda a: polar_factor(a, method=method, rtol=0.0, **settings)


def network_step() -> Callable[[], None]:
    """A training step of a small convolutional network."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 100, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return step


def timed(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: str, *, small: bool
) -> dict[str, list[float]]:
    """Seconds of each call in each round; on an accelerator until it is done."""
    if device == "cpu" and torch.get_num_threads() == 1:
        between = network_step() if small else None
        return interleaved_seconds(calls, rounds=rounds, clock=time.thread_time, between=between)

    def waited(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            call()
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    return interleaved_seconds({name: waited(call) for name, call in calls.items()}, rounds=rounds)


def error(q: Tensor, exact: Tensor) -> float:
    return float((q.double().cpu() - exact).norm()) / min(exact.shape) ** 0.5


def inputs(m: int, n: int, condition: float, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices of two spectra, and their exact factors."""
    generator = torch.Generator().manual_seed(0)
    spectra = [spectrum(shape, min(m, n), condition) for shape in ("log", "half small")]
    found = [matrix(values, m, n, generator) for values in spectra]
    return [a.to(device) for a in found], [turned_svd(a.double()) for a in found]


def rounds_of(m: int, n: int, rounds: int) -> int:
    """More of what is over in microseconds."""
    return max(rounds, min(40 * rounds, rounds * 2**19 // (m * n)))


def over_conditions(m: int, n: int, *, device: str, rounds: int) -> list[tuple[float, ...]]:
    """Rows of condition, milliseconds, ratios to the yardsticks, and errors."""
    rows = []
    for condition in CONDITIONS:
        (a, half), exact = inputs(m, n, condition, device)
        wide = a.double()
        square = torch.eye(min(m, n), dtype=wide.dtype, device=device)
        gram = wide.mT @ wide if m >= n else wide @ wide.mT
        calls = {
            "svd": lambda a=a: torch_svd(a),
            "turned": lambda a=a: turned_svd(a),
            "float64": lambda a=a: turned_svd(a.double()).float(),
            "auto": lambda a=a: mine("auto")(a),
            "product": lambda w=wide, s=square: w @ s if m >= n else s @ w,
            "eigh": lambda gram=gram: torch.linalg.eigh(gram),
        }
        seconds = timed(calls, rounds_of(m, n, rounds), device, small=m * n <= SMALL)
        parts = zip(seconds["product"], seconds["eigh"], strict=True)
        seconds["limit"] = [1.5 * product + eigh for product, eigh in parts]
        errors = [error(mine("auto")(x), q) for x, q in zip((a, half), exact, strict=True)]
        milliseconds = 1e3 * sorted(seconds["auto"])[len(seconds["auto"]) // 2]
        yardsticks = [ratio(seconds, "auto", each) for each in ("limit", "svd", "turned")]
        exact_svd = [ratio(seconds, "auto", "float64"), ratio(seconds, "float64", "svd")]
        rows.append((condition, milliseconds, *yardsticks, *exact_svd, *errors))
    return rows


def print_conditions(m: int, n: int, rows: list[tuple]) -> None:
    headings = (
        "condition", "auto, ms", "over limit", "over svd", "over svd transposed",
        "over svd float64", "svd float64 over svd", "error, even logs", "error, half small",
    )  # fmt: skip
    cells = [
        (f"{condition:.0e}", f"{ms:.2f}", *rest[:-2], *(f"{e:.1e}" for e in rest[-2:]))
        for condition, ms, *rest in rows
    ]
    report(f"Polar factor of {m}x{n}: time over that of the yardsticks, and error", headings, cells)
    if min(m, n) >= 64:
        say(
            "over the limit, condition up to 1e4", [r[2] for r in rows if r[0] <= PLAIN], OVER_LIMIT
        )
    target = SKINNY if (m, n) == SHAPES[0] else OVER_SVD
    say("over the SVD, condition up to 1e4", [r[3] for r in rows if r[0] <= PLAIN], target)
    say("over the SVD, every condition", [r[3] for r in rows], OVER_SVD)
    say("over the SVD of equal accuracy, every condition", [r[5] for r in rows], OVER_SVD)


def say(what: str, found: list[Ratio], target: float) -> None:
    worst = max(found, key=lambda each: each.median)
    print(f"{what}: at worst {worst}: {verdict(worst.median, target)}")


def methods(m: int, n: int, *, device: str, rounds: int) -> None:
    """Every method at a few conditions, beside what ``torch.optim.Muon`` does."""
    calls = {
        "svd": torch_svd,
        **{f"method {name!r}": mine(name) for name in METHODS},
        "'polar_express', 12 steps": mine("polar_express", max_iters=12),
        "Muon, float32": muon_float32,
    }
    rows = []
    for condition in METHOD_CONDITIONS:
        (a, half), exact = inputs(m, n, condition, device)
        bound = {name: (lambda call=call, a=a: call(a)) for name, call in calls.items()}
        few = min(rounds_of(m, n, rounds), 50)
        seconds = timed(bound, few, device, small=m * n <= SMALL)
        for name, call in calls.items():
            errors = [f"{error(call(x), q):.1e}" for x, q in zip((a, half), exact, strict=True)]
            rows.append((f"{condition:.0e}", name, ratio(seconds, name, "svd"), *errors))
    headings = ("condition", "method", "over svd", "error, even logs", "error, half small")
    report(f"Every method at {m}x{n}", headings, rows)


def nog_step(*, rounds: int) -> None:
    """All that NOG does at a step on a stem of 64 channels, over an SVD of its gradient.

    By hand: a gradient comes in, autograd is switched off, and the factor is written in its place.
    """
    stem = nn.Conv2d(3, 64, 3, bias=False)
    gradient = torch.randn(stem.weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(stem.parameters(), lr=0.0)
    nog = orthotrain.NearestOrthogonalGradient("weight", record_every=10**9)
    handle = orthotrain.attach(stem, optimizer, nog, auto=False)

    def by_handle() -> None:
        stem.weight.grad = gradient.clone()
        handle.before_step()

    @torch.no_grad()
    def by_hand() -> None:
        stem.weight.grad = gradient.clone()
        stem.weight.grad.copy_(torch_svd(stem.weight.grad.flatten(1)).view_as(gradient))

    def step() -> None:
        by_handle()
        handle.step()

    calls = {
        "svd": lambda: torch_svd(gradient.flatten(1)),
        "SVD by hand": by_hand,
        "polar_factor": lambda: polar_factor(gradient.flatten(1)),
        "NOG before the step": by_handle,
        "NOG, whole step": step,
    }
    seconds = timed(calls, 60 * rounds, "cpu", small=True)
    yardsticks = ("svd", "SVD by hand")
    rows = [(name, *(ratio(seconds, name, each) for each in yardsticks)) for name in calls]
    report("NOG on 64x27, gradient given", ("what", "over svd", "over svd by hand"), rows)
    for yardstick in yardsticks:
        say(
            f"NOG, whole step, over {yardstick}",
            [rows[-1][1 + yardsticks.index(yardstick)]],
            OVER_SVD,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=[""], help="such as 64x27, methods or nog")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Iterations say where they fall short; the table has it in numbers.
    warnings.simplefilter("ignore")
    print(f"device {arguments.device}")

    def wanted(name: str) -> bool:
        return any(part in name for part in arguments.only)

    for m, n in filter(lambda shape: wanted(f"{shape[0]}x{shape[1]}"), SHAPES):
        rows = over_conditions(m, n, device=arguments.device, rounds=arguments.rounds)
        print_conditions(m, n, rows)
    for m, n in METHOD_SHAPES if wanted("methods") else ():
        methods(m, n, device=arguments.device, rounds=arguments.rounds)
    if arguments.device == "cpu" and wanted("nog"):
        nog_step(rounds=arguments.rounds)


if __name__ == "__main__":
    main()
