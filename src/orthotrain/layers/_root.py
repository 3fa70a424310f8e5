"""The root inside a layer: by the kernel, as one operator of a graph, or as products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orthotrain.layers._root_now import root_now
from orthotrain.layers._tracing import exporting
from orthotrain.linalg import RootMethod, spd_inv_sqrt
from orthotrain.linalg._root_forward import DEFAULT_ITERATIONS, iterated_root

# Coupled Newton-Schulz steps that stand for a root in a recorded graph: 1.5**30 raises a root of
# 5e-6 of the largest, an eigenvalue of 3e-11 of the trace, to about one.
_RECORDED_STEPS = 30


def root_in_layer(
    layer: str, root: Callable[..., Tensor], covariance: Tensor, *, training: bool, **settings: Any
) -> Tensor:
    """``root(covariance, **settings)``; an error of the kernel names ``layer``, too.

    In a graph that is exported the root is made of products alone: no graph holds a decision on
    numbers, and ONNX has no eigenvalues. In a compiled graph it is one operator in evaluation. In
    training the graph breaks there instead, since the operator would make the root twice.
    """
    if exporting():
        return _recorded_root(covariance, inverse=root is spd_inv_sqrt, **settings)
    if torch.compiler.is_compiling() and not training:
        # Made when a graph is traced first, as it takes time.
        from orthotrain.layers._root_op import graph_root

        found: Tensor = graph_root(
            covariance, layer, root is spd_inv_sqrt, settings["method"], settings["gradient"],
            settings.get("ridge", 0.0), settings.get("relative_ridge", 0.0),
            settings["iterations"], settings.get("rounded_to"),
        )  # fmt: skip
        return found
    found = root_now(layer, root, covariance, **settings)
    return found


def _recorded_root(
    covariance: Tensor,
    *,
    inverse: bool,
    method: RootMethod,
    iterations: int | None,
    ridge: float = 0.0,
    relative_ridge: float = 0.0,
    **_: Any,
) -> Tensor:
    unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    p = covariance + (ridge + relative_ridge * mean) * unit
    if method in ("auto", "eigh"):
        method, iterations = "newton_schulz", _RECORDED_STEPS
    steps = DEFAULT_ITERATIONS.get(method, 0) if iterations is None else iterations
    found = iterated_root(p, method, steps, inverse=inverse)  # type: ignore[arg-type]
    return (found + found.mT) / 2
