"""Matrix roots: time and error of every method, forward plus backward, and what ``auto`` takes.

Claims, for an inverse root of float32 input on one CPU thread, n of 64 and 256, batch 1 and 8:
forward plus backward take at most 1.7 of the time of ``eigh`` in float32 with the exact gradient;
forward and gradient are within 1e-6 of the exact ones (relative Frobenius) up to condition 1e6;
the gradient is finite and right with 37 equal eigenvalues out of 64; and that of one matrix does
not depend on what else is in the batch.

On an accelerator (``--device cuda``) the same tables say what ``auto`` should take there.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from _measure import Ratio, interleaved_seconds, ratio, report, verdict
from orthotrain.errors import NumericalWarning
from orthotrain.linalg import spd_inv_sqrt, spd_sqrt

TIME, ERROR = 1.7, 1e-6
SIZES, BATCHES = (64, 256), (1, 8)
CONDITIONS = (1e2, 1e4, 1e6)
BASELINE, OURS = "eigh float32, exact gradient", "auto"
Root = Callable[[Tensor], Tensor]


class Float32Eigh(torch.autograd.Function):
    """The yardstick: the formulas of the exact gradient, all in float32, nothing checked."""

    @staticmethod
    def forward(ctx, a, power):
        """The root, or its inverse."""
        values, vectors = torch.linalg.eigh((a + a.mT) / 2)
        values = values.clamp(min=torch.finfo(a.dtype).tiny)
        ctx.power = power
        ctx.save_for_backward(values, vectors)
        return (vectors * (values**power).unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def backward(ctx, g):
        """Daleckii-Krein."""
        values, vectors = ctx.saved_tensors
        s = values.sqrt()
        factors = 1 / (s.unsqueeze(-1) + s.unsqueeze(-2))
        if ctx.power < 0:
            factors = -factors / (s.unsqueeze(-1) * s.unsqueeze(-2))
        inner = vectors.mT @ ((g + g.mT) / 2) @ vectors
        return vectors @ (factors * inner) @ vectors.mT, None


class PublishedPadeLyapunov(torch.autograd.Function):
    """MPA with the Lyapunov backward, by the formulas of Song, Sebe and Wang (2022), in float32.

    With the norms per matrix; over the batch, as published, the gradients would be wrong.
    """

    # [5/5] Pade of sqrt(1 - z): p_k and q_k, in z.
    TOP = (1.0, -11 / 4, 11 / 4, -77 / 64, 55 / 256, -11 / 1024)
    BOTTOM = (1.0, -9 / 4, 7 / 4, -35 / 64, 15 / 256, -1 / 1024)

    @staticmethod
    def forward(ctx, a, power):
        """Pade in ``1 - a / |a|``."""
        norm = a.norm(dim=(-2, -1), keepdim=True)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        z = eye - a / norm
        term, top, bottom = z, eye, eye
        for p, q in zip(
            PublishedPadeLyapunov.TOP[1:], PublishedPadeLyapunov.BOTTOM[1:], strict=True
        ):
            top, bottom, term = top + p * term, bottom + q * term, term @ z
        root = torch.linalg.solve(bottom, top) * norm.sqrt()
        inverse = torch.linalg.solve(top, bottom) / norm.sqrt() if power < 0 else None
        ctx.save_for_backward(root, inverse)
        return root if inverse is None else inverse

    @staticmethod
    def backward(ctx, g):
        """Eight steps of the sign iteration."""
        b, inverse = ctx.saved_tensors
        g = (g + g.mT) / 2
        c = g if inverse is None else -inverse @ g @ inverse
        norm = b.norm(dim=(-2, -1), keepdim=True)
        b, c = b / norm, c / norm
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        for _ in range(8):
            square = b @ b
            c = (c @ (3 * eye - square) - square @ c + b @ c @ b) / 2
            b = b @ (3 * eye - square) / 2
        return c / 2, None


def published_newton_schulz(a: Tensor, power: float, iterations: int) -> Tensor:
    """iSQRT-COV, and IterNorm for the inverse, in float32; torch's own autograd through it."""
    trace = a.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    y, z = a / trace, eye
    for _ in range(iterations):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return z / trace.sqrt() if power < 0 else y * trace.sqrt()


def composed_eigh(a: Tensor, power: float) -> Tensor:
    """What one writes first: torch's own autograd through ``eigh``."""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * (values**power).unsqueeze(-2)) @ vectors.mT


def candidates(name: str) -> dict[str, Root]:
    root, power = {"inv_sqrt": (spd_inv_sqrt, -0.5), "sqrt": (spd_sqrt, 0.5)}[name]

    def by(method: str, gradient: str = "exact", iterations: int | None = None) -> Root:
        return lambda a: root(a, method=method, gradient=gradient, iterations=iterations)

    return {
        BASELINE: lambda a: Float32Eigh.apply(a, power),
        OURS: by("auto"),
        "autograd through eigh float32": lambda a: composed_eigh(a, power),
        "Newton-Schulz 5 float32, autograd": lambda a: published_newton_schulz(a, power, 5),
        "Newton-Schulz 15 float32, autograd": lambda a: published_newton_schulz(a, power, 15),
        "Newton-Schulz 15, autograd": by("newton_schulz", "newton_schulz", 15),
        "Newton-Schulz 15, exact": by("newton_schulz"),
        "Polar Express 8, exact": by("polar_express"),
        "Polar Express 8, Lyapunov": by("polar_express", "lyapunov"),
        "MPA-Lyapunov float32, published": lambda a: PublishedPadeLyapunov.apply(a, power),
        "MPA-Lyapunov": by("mpa", "lyapunov"),
        "MTP-Lyapunov": by("mtp", "lyapunov"),
    }


def covariances(n: int, batch: int, condition: float, device: str) -> tuple[Tensor, Tensor]:
    """Float32 matrices with eigenvalues evenly spaced in the logarithm, and upstream gradients."""
    generator = torch.Generator().manual_seed(n + batch)
    q = torch.linalg.qr(torch.randn(batch, n, n, generator=generator, dtype=torch.float64)).Q
    values = (1 / torch.tensor(condition).double()) ** torch.linspace(0, 1, n).double()
    a = ((q * values) @ q.mT).float()
    return ((a + a.mT) / 2).to(device), torch.randn(batch, n, n, generator=generator).to(device)


def forward_and_gradient(root: Root, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    x = a.clone().requires_grad_()
    y = root(x)
    y.backward(g)
    return y.detach(), x.grad


def step(root: Root, a: Tensor, g: Tensor) -> Callable[[], None]:
    def run() -> None:
        forward_and_gradient(root, a, g)
        if a.device.type == "cuda":
            torch.cuda.synchronize(a.device)

    return run


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest relative Frobenius error of the batch; infinite where anything is not finite."""
    gap = (actual.double().cpu() - expected).flatten(1).norm(dim=1)
    worst = float((gap / expected.flatten(1).norm(dim=1)).max())
    return worst if worst == worst else float("inf")


def time_table(name: str, *, device: str, rounds: int, sizes: Sequence[int]) -> list[tuple]:
    """Rows of size, batch, method, milliseconds, ratio of time, and verdict for ``auto``."""
    rows = []
    for n in sizes:
        for batch in BATCHES:
            a, g = covariances(n, batch, 1e4, device)
            calls = candidates(name)
            seconds = interleaved_seconds(
                {label: step(root, a, g) for label, root in calls.items()},
                rounds=max(5, rounds * 64 // (n * batch)) if n * batch > 64 else rounds,
            )
            for label, times in seconds.items():
                relation: Ratio = ratio(seconds, label, BASELINE)
                milliseconds = sorted(times)[len(times) // 2] * 1e3
                judged = verdict(relation.median, TIME) if label == OURS else ""
                rows.append((n, batch, label, f"{milliseconds:.2f}", relation, judged))
    return rows


def error_table(name: str, *, device: str, sizes: Sequence[int]) -> list[tuple]:
    """Rows of size, condition, method, forward error and gradient error."""
    exact = {"inv_sqrt": spd_inv_sqrt, "sqrt": spd_sqrt}[name]
    rows = []
    for n in sizes:
        for condition in CONDITIONS:
            a, g = covariances(n, 2, condition, device)
            root, gradient = forward_and_gradient(exact, a.double().cpu(), g.double().cpu())
            for label, call in candidates(name).items():
                mine, its = forward_and_gradient(call, a, g)
                errors = relative(mine, root), relative(its, gradient)
                judged = verdict(max(errors), ERROR) if label == OURS else ""
                cells = (f"{error:.1e}" for error in errors)
                rows.append((n, f"{condition:.0e}", label, *cells, judged))
    return rows


def tie_table(name: str, *, device: str) -> list[tuple]:
    """The gradient where 37 of 64 eigenvalues are equal, against finite differences in float64."""
    exact = {"inv_sqrt": spd_inv_sqrt, "sqrt": spd_sqrt}[name]
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    values = torch.full((64,), 1e-2, dtype=torch.float64)
    values[:27] += torch.logspace(0, -2, 27, dtype=torch.float64)
    a = ((basis * values) @ basis.mT).float().double()
    a = (a + a.mT) / 2
    g, h = torch.randn(2, 64, 64, generator=generator, dtype=torch.float64)
    h = (h + h.mT) / h.norm()
    at = 1e-5
    near = exact(a + at * h) - exact(a - at * h)
    far = exact(a + 2 * at * h) - exact(a - 2 * at * h)
    slope = float((g * (8 * near - far)).sum() / (12 * at))
    _, reference = forward_and_gradient(exact, a, g)
    gap = abs(float((reference * h).sum()) / slope - 1)
    rows = [("float64 input, against finite differences", f"{gap:.1e}", "")]
    for label, call in candidates(name).items():
        _, gradient = forward_and_gradient(
            call, a.float().to(device)[None], g.float().to(device)[None]
        )
        error = relative(gradient, reference[None])
        rows.append((label, f"{error:.1e}", verdict(error, ERROR) if label == OURS else ""))
    return rows


def batch_table(name: str, *, device: str) -> list[tuple]:
    """How much the gradient of a matrix moves when it stands beside others of another size."""
    a, g = covariances(64, 4, 1e4, device)
    a = a * torch.tensor([1.0, 1e-6, 1e6, 1.0], device=device)[:, None, None]
    rows = []
    for label, call in candidates(name).items():
        _, together = forward_and_gradient(call, a, g)
        _, alone = forward_and_gradient(call, a[:1], g[:1])
        moved = relative(together[:1], alone.double().cpu())
        rows.append((label, f"{moved:.1e}", verdict(moved, ERROR) if label == OURS else ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--root", choices=("inv_sqrt", "sqrt"), default="inv_sqrt")
    parser.add_argument("--rounds", type=int, default=60, help="of the smallest size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    name, device = options.root, options.device
    torch.set_num_threads(1)
    # Freed large tensors let the allocator keep memory, as in any process that trains.
    for _ in range(2):
        torch.zeros(1 << 22)
    warnings.simplefilter("ignore", NumericalWarning)
    report(
        f"spd_{name} on {device}, forward plus backward: ratios to {BASELINE}",
        ("n", "batch", "method", "ms", "ratio [middle half]", "target"),
        time_table(name, device=device, rounds=options.rounds, sizes=options.sizes),
    )
    report(
        f"spd_{name} on {device}: relative Frobenius error of float32 input",
        ("n", "condition", "method", "forward", "gradient", "target"),
        error_table(name, device=device, sizes=options.sizes),
    )
    report(
        f"spd_{name} on {device}: gradient with 37 equal eigenvalues out of 64",
        ("method", "relative error", "target"),
        tie_table(name, device=device),
    )
    report(
        f"spd_{name} on {device}: change of one matrix's gradient by the rest of the batch",
        ("method", "relative change", "target"),
        batch_table(name, device=device),
    )


if __name__ == "__main__":
    main()
