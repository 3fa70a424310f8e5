"""One layer trained twice: with methods attached, and by hand with the float64 twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from orthotrain.methods import Handle, Method, attach
from reference.gradient_methods import Settings, twin_step


@dataclass(frozen=True)
class Kind:
    """A layer, what it is fed, and how its weight is read as matrices."""

    make: Callable[[], nn.Module]
    batch: tuple[int, ...]
    groups: int = 1
    transposed: bool = False


KINDS = {
    "linear": Kind(lambda: nn.Linear(5, 3, bias=False), (7, 5)),
    "tall linear": Kind(lambda: nn.Linear(3, 6, bias=False), (7, 3)),
    "convolution": Kind(lambda: nn.Conv2d(2, 4, 3, bias=False), (3, 2, 5, 5)),
    "grouped": Kind(lambda: nn.Conv2d(4, 6, (2, 3), groups=2, bias=False), (3, 4, 5, 5), groups=2),
    "depthwise": Kind(lambda: nn.Conv1d(3, 3, 4, groups=3, bias=False), (3, 3, 9), groups=3),
    "transposed": Kind(
        lambda: nn.ConvTranspose2d(3, 4, 2, bias=False), (3, 3, 4, 4), transposed=True
    ),
    "transposed, grouped": Kind(
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2, bias=False),
        (3, 4, 4, 4),
        groups=2,
        transposed=True,
    ),
}


def seeded(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def make_layer(kind: Kind, *, dtype: torch.dtype = torch.float64, scale: float = 0.4) -> nn.Module:
    """The layer with drawn weights; no global seed is read or set."""
    with torch.random.fork_rng(devices=[]):
        layer = kind.make().to(dtype)
    with torch.no_grad():
        layer.weight.copy_(scale * seeded(tuple(layer.weight.shape), 1))
    return layer


def loss_of(layer: nn.Module, weight: Tensor | None, batch: Tensor) -> Tensor:
    """Something curved, so that gradients change from step to step."""
    out = layer(batch) if weight is None else functional_call(layer, {"weight": weight}, batch)
    target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return (out.tanh() - target).square().mean()


def lockstep(
    kind: Kind,
    methods: list[Method],
    settings: Settings,
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    steps: int = 10,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The attached weight and the twin's, after every step."""
    layer, batch = make_layer(kind), seeded(kind.batch, 2)
    optimizer = make_optimizer([layer.weight])
    twin = nn.Parameter(layer.weight.detach().clone())
    twin_optimizer = make_optimizer([twin])
    first_norm = float(twin.detach().norm())
    attach(nn.Sequential(layer), optimizer, *methods)
    settings = Settings(**{**vars(settings), "groups": kind.groups, "transposed": kind.transposed})

    def optimizer_step(gradient: Tensor) -> Tensor:
        twin.grad = gradient.clone()
        twin_optimizer.step()
        return twin.detach().clone()

    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(layer, None, batch).backward()
        optimizer.step()

        start = twin.detach().clone()
        free = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(layer, free, batch), free)
        after = twin_step(
            start,
            gradient,
            settings,
            lr=float(twin_optimizer.param_groups[0]["lr"]),
            first_norm=first_norm,
            optimizer_step=optimizer_step,
        )
        with torch.no_grad():
            twin.copy_(after)
        yield layer.weight.detach(), twin.detach()


def agree(pairs: Iterator[tuple[Tensor, Tensor]], *, within: float = 1e-9) -> None:
    """Weight and twin are equal after every step, and they move."""
    moved, first = 0.0, None
    for weight, twin in pairs:
        torch.testing.assert_close(weight, twin, rtol=within, atol=within)
        first = weight.clone() if first is None else first
        moved = float((weight - first).norm())
    assert moved > 1e-4


def one_step(
    method: Method,
    weight: Tensor,
    gradient: Tensor,
    *,
    lr: float | Tensor = 1.0,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
) -> tuple[Tensor, Handle]:
    """A linear layer's weight after one step with this gradient."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    stepper = optimizer(layer.parameters(), lr=lr)
    handle = attach(nn.Sequential(layer), stepper, method)
    layer.weight.grad = gradient.clone()
    stepper.step()
    return layer.weight.detach(), handle
