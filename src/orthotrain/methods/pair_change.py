r"""How optimizer state follows a weight into a pair of trained factors, and a pair into another.

With the gradient ``g`` of a weight ``left @ right``, the factors have the gradients ``g right^T``
and ``left^T g``. So, for a balanced pair of ``p diag(s) qh``, what is linear in the gradient
becomes ``x qh^T s^(1/2)`` and ``s^(1/2) p^T x``, and what is quadratic the same with every entry
of these matrices squared. Step sizes, whose unit is the parameter's, are averaged without ``s``.

A copy of the parameter (ASGD, schedule-free, Lookahead) becomes the nearest pair of its part
inside the new bases: ``linalg/factor_pair.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.linalg._inputs import result_dtype
from orthotrain.linalg.decompose import working_dtype
from orthotrain.linalg.factor_pair import balanced_pair, halves, nearest_pair
from orthotrain.methods.basis_change import CoordinateChange, Rule


@dataclass(frozen=True, eq=False)
class PairSwitch(CoordinateChange):
    """From a dense weight to the balanced pair of ``p @ diag(s) @ qh``.

    Attributes:
        p: ``(*g, m, k)`` with orthonormal columns, any floating dtype and device.
        s: ``(*g, k)`` singular values.
        qh: ``(*g, k, n)`` with orthonormal rows.
    """

    p: Float[Tensor, "*g m k"]
    s: Float[Tensor, "*g k"]
    qh: Float[Tensor, "*g k n"]

    @property
    def before(self) -> tuple[int, ...]:
        """Shape ``(*g, m, n)`` of the dense weight, block by block."""
        return (*self.p.shape[:-1], self.qh.shape[-1])

    @property
    def after(self) -> tuple[int, ...]:
        """Shape ``(*g, k, m + n)`` of the pair."""
        return (*self.s.shape, self.p.shape[-2] + self.qh.shape[-1])

    def moved(self, x: Tensor, rule: Rule) -> Tensor:
        """The pair that ``x`` becomes; see the rules at the top of this file."""
        dtype = working_dtype(x) if rule == "copied" else result_dtype(x.dtype)
        p, s, qh = (f.to(x.device, dtype) for f in (self.p, self.s, self.qh))
        matrix = x.to(p.dtype).reshape(self.before)
        if rule == "copied":
            return _nearest(p, p.mT @ matrix @ qh.mT, qh, s)
        if rule == "linear":
            scale = s.sqrt().unsqueeze(-1)
        else:
            p, qh = p.square(), qh.square()
            scale = s.unsqueeze(-1) if rule == "squared" else torch.ones_like(s).unsqueeze(-1)
        return scale * torch.cat((qh @ matrix.mT, p.mT @ matrix), -1)


@dataclass(frozen=True, eq=False)
class PairCut(CoordinateChange):
    """From a pair to the balanced one of the leading part ``p @ diag(s) @ qh`` of its product.

    The new factors are combinations of the old ones, ``left (right qh^T s^(-1/2))`` and
    ``(s^(-1/2) p^T left) right``, and so are their gradients.

    Attributes:
        left: ``(*g, m, k)``, the old left factor.
        right: ``(*g, k, n)``, the old right factor.
        p: ``(*g, m, r)`` leading left singular vectors of ``left @ right``.
        s: ``(*g, r)`` its leading singular values.
        qh: ``(*g, r, n)`` its leading right singular vectors.
    """

    left: Float[Tensor, "*g m k"]
    right: Float[Tensor, "*g k n"]
    p: Float[Tensor, "*g m r"]
    s: Float[Tensor, "*g r"]
    qh: Float[Tensor, "*g r n"]

    @property
    def before(self) -> tuple[int, ...]:
        """Shape ``(*g, k, m + n)`` of the old pair."""
        return (*self.right.shape[:-1], self.left.shape[-2] + self.right.shape[-1])

    @property
    def after(self) -> tuple[int, ...]:
        """Shape ``(*g, r, m + n)`` of the new pair."""
        return (*self.s.shape, self.before[-1])

    def moved(self, x: Tensor, rule: Rule) -> Tensor:
        """The pair that ``x`` becomes; see the rules at the top of this file."""
        dtype = working_dtype(x)
        left, right, p, s, qh = (
            f.to(x.device, dtype) for f in (self.left, self.right, self.p, self.s, self.qh)
        )
        # Rows of a and b carry the inverse of small values; what they multiply is large.
        x = x.to(dtype if rule == "copied" else result_dtype(x.dtype))
        of_left, of_right = halves(x.reshape(self.before), left.shape[-2])
        if rule == "copied":
            return _nearest(p, (p.mT @ of_left) @ (of_right @ qh.mT), qh, s)
        smallest = torch.finfo(dtype).eps * s[..., :1].clamp_min(torch.finfo(dtype).tiny)
        inverse = s.maximum(smallest).rsqrt().unsqueeze(-1)
        # Rows mix: left'^T = a left^T and right' = b right, so the gradients take b and a.
        a, b = inverse * (qh @ right.mT), inverse * (p.mT @ left)
        if rule == "squared":
            a, b = a.square(), b.square()
        elif rule == "averaged":
            a, b = (f.square() / f.square().sum(-1, keepdim=True).clamp_min(1e-30) for f in (a, b))
        a, b = a.to(x.dtype), b.to(x.dtype)
        return torch.cat((b @ of_left.mT, a @ of_right), -1)


def _nearest(p: Tensor, core: Tensor, qh: Tensor, s: Tensor) -> Tensor:
    """The pair of ``p @ core @ qh`` nearest to the balanced one of ``p @ diag(s) @ qh``."""
    left, right = halves(balanced_pair(p, s, qh), p.shape[-2])
    return nearest_pair(p, core, qh, left=left, right=right)
