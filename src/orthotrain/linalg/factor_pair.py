"""Two factors of equal size for one matrix: ``a = left @ right``, held side by side as a pair.

The pair of ``left``, ``(*g, m, k)``, and ``right``, ``(*g, k, n)``, is ``[left^T, right]``,
``(*g, k, m + n)``. It is balanced where ``left^T left = right right^T``: both factors then hold
the same share of the product, and a step moves both alike.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.linalg.decompose import thin_svd, working_dtype
from orthotrain.linalg.polar import polar_factor


def balanced_pair(
    p: Float[Tensor, "*g m k"], s: Float[Tensor, "*g k"], qh: Float[Tensor, "*g k n"]
) -> Float[Tensor, "*g k both"]:
    """The balanced pair of ``p @ diag(s) @ qh``: ``p s^(1/2)`` and ``s^(1/2) qh``.

    Args:
        p: ``(*g, m, k)`` with orthonormal columns.
        s: ``(*g, k)`` singular values.
        qh: ``(*g, k, n)`` with orthonormal rows.
    """
    return s.sqrt().unsqueeze(-1) * torch.cat((p.mT, qh), -1)


def halves(
    pair: Float[Tensor, "*g k both"], m: int
) -> tuple[Float[Tensor, "*g m k"], Float[Tensor, "*g k n"]]:
    """``left`` and ``right`` of a pair, as views; ``m`` is the number of rows of the product."""
    left, right = torch.split(pair, [m, pair.shape[-1] - m], -1)
    return left.mT, right


@torch.no_grad()
def orthonormal_form(
    left: Float[Tensor, "*g m k"], right: Float[Tensor, "*g k n"]
) -> tuple[Float[Tensor, "*g m k"], Float[Tensor, "*g k k"], Float[Tensor, "*g k n"]]:
    """``u, core, vh`` of a product ``left @ right = u @ core @ vh``, by two QR decompositions.

    Returns:
        ``u`` and ``vh`` orthonormal, ``core`` a full ``k x k`` matrix with the singular values
        of the product; in ``working_dtype(left)``, without gradient.
    """
    work = working_dtype(left)
    u, r = torch.linalg.qr(left.to(work))
    v, t = torch.linalg.qr(right.mT.to(work))
    return u, r @ t.mT, v.mT


@torch.no_grad()
def nearest_pair(
    u: Float[Tensor, "*g m k"],
    core: Float[Tensor, "*g k k"],
    vh: Float[Tensor, "*g k n"],
    *,
    left: Float[Tensor, "*g m k"],
    right: Float[Tensor, "*g k n"],
) -> Float[Tensor, "*g k both"]:
    """The balanced pair of ``u @ core @ vh`` that lies nearest to ``left`` and ``right``.

    All balanced pairs of one matrix differ by a rotation between the factors; of these the
    nearest one is taken (orthogonal Procrustes: the polar factor of ``a^T left + b right^T``).
    So an average of two pairs stands for an average of two weights.
    """
    p, s, qh = thin_svd(core)
    a, b = halves(balanced_pair(u.to(p) @ p, s, qh @ vh.to(p)), left.shape[-2])
    turn = polar_factor(a.mT @ left.to(a) + b @ right.mT.to(b))
    return turn.mT @ torch.cat((a.mT, b), -1)
