"""The metric in which one site is cut, made of what was gathered at its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from orthotrain.layers._factors import low_rank_class_of
from orthotrain.layers.low_rank import LowRankTransposedLinear
from orthotrain.linalg.metric_svd import RIDGE
from orthotrain.lowrank.moments import Moments
from orthotrain.lowrank.sites import Site

# What a block without any signal gets, as a share of the mean of its layer; that of the ridge.
_LIFT: Final = 1e-3


@dataclass(frozen=True)
class Metric:
    """Second moments at the two sides of the matrix that holds a site: dense weight or core.

    Attributes:
        a: ``(n, n)`` at its columns, or ``(blocks, n, n)``; None is the identity.
        b: ``(m, m)`` at its rows, or ``(blocks, m, m)``; None is the identity.
        scale: ``(n,)``, the root of a diagonal one at its columns, in the place of ``a``.
    """

    a: Tensor | None
    b: Tensor | None
    scale: Tensor | None = None


def metric_of(site: Site, moments: Sequence[Moments]) -> Metric | None:
    """The metric of a site; None where a part of it saw no data, or nothing but zeros.

    Args:
        site: Dense or low-rank.
        moments: Of each of its projections, in order.
    """
    a, packed = inputs_of(site, moments), is_packed(site)
    gradients = [each.b for each in moments if each.b is not None]
    if a is None or len(gradients) not in (0, len(moments)):
        return None
    b = torch.cat(gradients) if gradients else None
    if packed and site.layout.blocks == 1:  # one basis for query, key and value
        a = a.mean(0, keepdim=True)
        if b is not None:
            b = torch.block_diag(*b).unsqueeze(0)  # type: ignore[no-untyped-call]
    lifted = [None if side is None else _lifted(side) for side in (a, b)]
    if lifted[0] is None or (b is not None and lifted[1] is None):
        return None
    if has_inputs_in_front(site):
        lifted.reverse()  # its weight has its inputs in front
    sides = _in_core(site, lifted) if site.factored else lifted
    blocks = site.layout.blocks
    if sides[0] is not None and sides[0].ndim == 2 and not site.factored:
        often = sides[0][0]
        root = (often + RIDGE * often.mean()).sqrt()
        return Metric(None, None if sides[1] is None else sides[1][0], root)
    return Metric(*(side if side is None or blocks > 1 else side[0] for side in sides))


def inputs_of(site: Site, moments: Sequence[Moments]) -> Tensor | None:
    """``(blocks, n, n)`` second moments of a site's inputs, one block for each projection.

    ``(1, n)``, a diagonal, of an embedding. None where a part of the site saw no data.
    """
    inputs = [each.a for each in moments if each.a is not None]
    if len(inputs) != (3 if is_packed(site) else 1):
        return None
    return torch.cat(inputs)


def moment_shapes(site: Site) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the moments of inputs and of output gradients, for each projection of a site."""
    layout = site.layout
    if is_packed(site):
        width = layout.shape[0] // 3
        return [((1, layout.n, layout.n), (1, width, width))] * 3
    m, n = (layout.n, layout.m) if has_inputs_in_front(site) else (layout.m, layout.n)
    return [((layout.blocks, n, n), (layout.blocks, m, m))]


def is_packed(site: Site) -> bool:
    """Whether query, key and value of attention are one weight."""
    return any(
        isinstance(module, nn.MultiheadAttention) and weight == "in_proj_weight"
        for module, weight in site.owners
    )


def has_inputs_in_front(site: Site) -> bool:
    """Whether the weight has its inputs in front."""
    return low_rank_class_of(site.owners[0][0]) is LowRankTransposedLinear


def _lifted(side: Tensor) -> Tensor | None:
    """Blocks that saw nothing get a small multiple of the identity; None where all did."""
    if side.ndim == 2:
        return side if bool(side.sum() > 0) else None
    mean = side.diagonal(dim1=-2, dim2=-1).mean(-1)
    whole = mean.mean()
    if not bool(whole > 0):
        return None
    if bool((mean > 0).all()):
        return side  # the same memory: what is gathered is kept for the report
    eye = torch.eye(side.shape[-1], dtype=side.dtype, device=side.device)
    return side + torch.where(mean > 0, 0.0, _LIFT * whole)[:, None, None] * eye


def _in_core(site: Site, sides: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What inputs and gradients are in the coordinates of the core."""
    u, _, vh = site.factors
    a, b = sides
    if a is not None:
        v = vh.to(a).mT
        a = v.mT @ (a.mT * v if a.ndim == 2 else a @ v)
        a = a if a.ndim == 3 else a[None]
    if b is not None:
        u = u.to(b)
        b = u.mT @ b @ u
    return [a, b]
