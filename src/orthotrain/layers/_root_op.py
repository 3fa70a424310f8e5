"""The root inside a compiled graph: one operator, which looks at its numbers as the kernel does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotrain.layers._root_now import root_now
from orthotrain.linalg import spd_inv_sqrt, spd_sqrt

_NAMES = (
    "layer", "inverse", "method", "gradient", "ridge", "relative_ridge", "iterations", "rounded_to",
)  # fmt: skip
_SETTINGS = (
    "str layer, bool inverse, str method, str gradient, float ridge, float relative_ridge, "
    "int? iterations, ScalarType? rounded_to"
)


def _root(covariance: Tensor, layer: str, inverse: bool, *settings: Any) -> Tensor:
    root = spd_inv_sqrt if inverse else spd_sqrt
    return root_now(layer, root, covariance, **dict(zip(_NAMES[2:], settings, strict=True)))


@torch.library.custom_op(
    "orthotrain::root", mutates_args=(), schema=f"(Tensor covariance, {_SETTINGS}) -> Tensor"
)
def graph_root(*inputs: Any) -> Tensor:
    """``root_now`` as a node of the graph; its derivative makes the root once more."""
    return _root(*inputs)


@torch.library.custom_op(
    "orthotrain::root_gradient",
    mutates_args=(),
    schema=f"(Tensor g, Tensor covariance, {_SETTINGS}) -> Tensor",
)
def _gradient(g: Tensor, covariance: Tensor, *settings: Any) -> Tensor:
    with torch.enable_grad():
        leaf = covariance.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_root(leaf, *settings), leaf, g)
    return gradient


@graph_root.register_fake
def _(covariance: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(covariance)


@_gradient.register_fake
def _(g: Tensor, covariance: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(covariance)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    covariance, *ctx.settings = inputs
    ctx.save_for_backward(covariance)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    (covariance,) = ctx.saved_tensors
    return _gradient(g, covariance, *ctx.settings), *(None for _ in _NAMES)


graph_root.register_autograd(_backward, setup_context=_keep)
