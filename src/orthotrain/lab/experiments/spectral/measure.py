"""What a run with a spectral layer tells at its end: weight norm, and shares of a step."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from orthotrain.lab.experiments.spectral.config import SpectralConfig
from orthotrain.lab.experiments.spectral.networks import LAYER_BEFORE, SPECTRAL_LAYER
from orthotrain.lab.run.sizes import hook_shares
from orthotrain.layers import GlobalCovariancePool, OrthogonalConv2d
from orthotrain.layers.decorrelated_batch_norm import DecorrelatedBatchNorm2d
from orthotrain.linalg import spd_inv_sqrt, spd_sqrt
from orthotrain.methods.handle import Handle

_ROUNDS = 7


def spectral_fields(
    model: nn.Module,
    spectral: SpectralConfig,
    *,
    handle: Handle,
    steps_here: int,
    step_ms: float,
    batch_size: int,
) -> dict[str, Any]:
    """Fields of result.json.

    Args:
        model: The trained network.
        spectral: Its spectral layer's settings.
        handle: The attached methods, asked for the time their hooks took.
        steps_here: Optimizer steps since the handle was attached.
        step_ms: Median time of an optimizer step.
        batch_size: Images a step.

    Returns:
        ``weight_norm``, the Frobenius norm of the weight before the layer (None without one, and
        for an orthogonal convolution, whose map has no norm to speak of but one),
        and ``shares``: seconds of one root, forward and backward, timed alone on matrices of the
        layer's size, and of each method's hooks, over the time of a step.
    """
    shares = hook_shares(handle, steps=steps_here, step_ms=step_ms)
    root = root_seconds(model.get_submodule(SPECTRAL_LAYER[spectral.layer]), batch_size=batch_size)
    if root is not None:
        shares["root"] = 1000 * root / step_ms
    weight = _weight_before(model, spectral)
    return {"weight_norm": None if weight is None else float(weight.norm()), "shares": shares}


def _weight_before(model: nn.Module, spectral: SpectralConfig) -> Tensor | None:
    """The weight before the layer as it acts, out of its parametrisation if it has one."""
    before = dict(model.named_modules()).get(LAYER_BEFORE[spectral.layer])
    if before is None or isinstance(before, OrthogonalConv2d):
        return None
    weight = before.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def root_seconds(layer: nn.Module, *, batch_size: int) -> float | None:
    """Median seconds of the layer's root, forward and backward; None for any other layer.

    Timed on well-conditioned matrices of the size and number the layer meets in a step.
    """
    if isinstance(layer, DecorrelatedBatchNorm2d):
        root, count, size = spd_inv_sqrt, layer.groups, layer.num_features // layer.groups
    elif isinstance(layer, GlobalCovariancePool):
        root, count, size = spd_sqrt, batch_size, layer.channels
    else:
        return None
    device = next(layer.parameters()).device
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, size, size, generator=generator)
    covariance = torch.eye(size) + noise @ noise.mT / size
    covariance = covariance.to(device).requires_grad_()
    gradient = torch.ones_like(covariance)
    seconds = []
    for _ in range(_ROUNDS):
        _wait(device)
        start = time.perf_counter()
        value = root(
            covariance, method=layer.method, gradient=layer.gradient, iterations=layer.iterations
        )
        torch.autograd.grad(value, covariance, gradient)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
