"""Slow float64 twins of the image generators and discriminators.

Convolutions are sums over taps and the networks are written out from the names of their weights,
from the description in their docstrings and from nothing in the package.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def correlate(x: Tensor, w: Tensor, b: Tensor | None, *, stride: int = 1, padding: int) -> Tensor:
    """A convolution as its definition says: each tap times the shifted map."""
    n, _, height, width = x.shape
    d, _, kh, kw = w.shape
    padded = x.new_zeros(n, x.shape[1], height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows = (height + 2 * padding - kh) // stride + 1
    columns = (width + 2 * padding - kw) // stride + 1
    out = x.new_zeros(n, d, rows, columns)
    for i in range(kh):
        for j in range(kw):
            seen = padded[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            out += torch.einsum("nchw,dc->ndhw", seen[:, :, :rows, :columns], w[:, :, i, j])
    return out if b is None else out + b[:, None, None]


def spread(x: Tensor, w: Tensor, b: Tensor | None, *, stride: int, padding: int) -> Tensor:
    """A transposed convolution to ``stride`` times the side: each pixel adds its kernel."""
    n, _, height, width = x.shape
    _, d, kh, kw = w.shape
    full = x.new_zeros(n, d, stride * height + kh, stride * width + kw)
    for y in range(height):
        for z in range(width):
            patch = torch.einsum("nc,cdij->ndij", x[:, :, y, z], w)
            full[:, :, y * stride : y * stride + kh, z * stride : z * stride + kw] += patch
    out = full[
        :, :, padding : padding + stride * height, padding : padding + stride * width
    ].clone()
    return out if b is None else out + b[:, None, None]


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def instance_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[i, c]
            spread_of = ((values - values.mean()) ** 2).mean() + 1e-5
            out[i, c] = (values - values.mean()) / spread_of**0.5 * w[c] + b[c]
    return out


def eigen_generator(state: State, z: Tensor, e: Tensor | None) -> Tensor:
    """``z`` is ``(n, blocks, num_basis)``."""
    state = {name: value.double() for name, value in state.items()}
    n, blocks, _ = z.shape
    if e is None:
        h = torch.stack([state["constant"]] * n)
    else:
        h = (e @ state["start.weight"].mT + state["start.bias"]).view(n, -1, 4, 4)
    for i in range(blocks):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in state.items()
             if name.startswith(f"blocks.{i}.")}  # fmt: skip
        phi = w["subspace.mean"].expand(n, -1).clone()
        for j in range(z.shape[2]):
            phi += (w["subspace.scale"][j] * z[:, i, j])[:, None] * w["subspace.u"][j]
        phi = phi.view(h.shape)
        same = spread(phi, w["subspace_same.weight"], w["subspace_same.bias"], stride=1, padding=0)
        up = spread(phi, w["subspace_up.weight"], w["subspace_up.bias"], stride=2, padding=1)
        h = spread(leaky(h + same), w["up.weight"], w["up.bias"], stride=2, padding=1)
        h = spread(leaky(h + up), w["same.weight"], w["same.bias"], stride=1, padding=1)
    image = correlate(leaky(h), state["to_image.weight"], state["to_image.bias"], padding=3)
    return image.tanh()


def eigen_discriminator(state: State, images: Tensor) -> Tensor:
    state = {name: value.double() for name, value in state.items()}
    count = sum(name.startswith("convolutions.") for name in state) // 2
    h = images
    for i in range(count):
        w, b = state[f"convolutions.{i}.weight"], state[f"convolutions.{i}.bias"]
        # The first and the last keep the side, and so does every other one between.
        halves = i > 0 and i % 2 == 0 and i < count - 1
        h = leaky(correlate(h, w, b, stride=2 if halves else 1, padding=w.shape[-1] // 2))
    return _classify(state, h)


def simple_generator(state: State, z: Tensor) -> Tensor:
    state = {name: value.double() for name, value in state.items()}
    # As a transposed convolution of a 1x1 map: row i of the matrix is the kernel of input i.
    kernel = state["latent.weight"].view(z.shape[1], -1, 4, 4)
    h = torch.einsum("ni,icjk->ncjk", z, kernel) + state["latent.bias"][:, None, None]
    for i in range(sum(name.startswith("ups.") for name in state)):
        h = spread(h, state[f"ups.{i}.weight"], None, stride=2, padding=1)
        h = leaky(instance_norm(h, state[f"norms.{i}.weight"], state[f"norms.{i}.bias"]))
    return correlate(h, state["to_image.weight"], state["to_image.bias"], padding=1).tanh()


def simple_discriminator(state: State, images: Tensor) -> Tensor:
    state = {name: value.double() for name, value in state.items()}
    h = leaky(correlate(images, state["first.weight"], state["first.bias"], stride=2, padding=1))
    for i in range(sum(name.startswith("downs.") for name in state)):
        h = correlate(h, state[f"downs.{i}.weight"], None, stride=2, padding=1)
        h = leaky(instance_norm(h, state[f"norms.{i}.weight"], state[f"norms.{i}.bias"]))
    return _classify(state, h)


def _classify(state: State, h: Tensor) -> Tensor:
    hidden = leaky(h.flatten(1) @ state["hidden.weight"].mT + state["hidden.bias"])
    return (hidden @ state["head.weight"].mT + state["head.bias"])[:, 0]
