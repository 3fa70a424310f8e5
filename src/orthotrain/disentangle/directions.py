"""Directions of a latent weight: SeFa in closed form, and the trained Householder projector."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from orthotrain._checks import known, require_finite, require_tensor
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, RankError, ShapeError
from orthotrain.linalg import eigh, thin_svd
from orthotrain.linalg._inputs import power_of_two_scale

# Entries nearer than this to the largest count as equal to it, so that rounding does not choose.
_TIE = 1e-6

#: What stands on the diagonal: ones, the mean of the kept singular values, or these themselves.
Scales = Literal["one", "mean", "singular"]


@checked
def sefa_directions(
    weight: Float[Tensor, "*shape"], *, latent_axis: int | None = None
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    r"""Directions in latent space along which a weight stretches most (SeFa).

    With the weight as ``W``, ``(latent, features)``, and each column scaled to length one, these
    are the eigenvectors of ``W W^T``.

    Args:
        weight: The weight that multiplies the latent, in one of these shapes:

            - ``nn.Linear``: ``(out, in)``, the latent is axis 1;
            - ``nn.ConvTranspose2d``: ``(in, out, kh, kw)``, the latent is axis 0;
            - ``EigenSubspace.u`` and the latent layer of ``SimpleGenerator``:
              ``(latent, features)``, axis 0. The subspace multiplies by its scales, too: pass
              ``(scale[:, None] * u)``.
        latent_axis: Which axis is the latent. None is the first of three axes or more, and the
            shorter one of a matrix. A square matrix needs it named.

    Returns:
        ``(directions, strengths)``: directions ``(d, d)``, orthogonal, **one per row**, from the
        largest eigenvalue to the smallest; strengths are the eigenvalues, ``(d,)``, not negative.
        The largest entry of every direction is positive (the first of equals). Both have the dtype
        and device of ``weight``. Where eigenvalues repeat, their directions are arbitrary.

    Raises:
        ShapeError: Fewer than two axes, or an empty one.
        ConfigError: Not real floating-point, no such axis, or a square matrix without one.
        NonFiniteError: ``weight`` holds NaN or infinity.
        ConvergenceError: No driver finds the eigenvalues.

    Note:
        A column of zeros, a feature that no latent reaches, stays zero. Not differentiable.

    Source:
        Shen and Zhou (2021), arXiv:2007.06600.

    Example:
        >>> weight = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])  # of nn.Linear(2, 3)
        >>> directions, strengths = sefa_directions(weight)
        >>> directions.tolist(), strengths.tolist()
        ([[0.0, 1.0], [1.0, 0.0]], [2.0, 1.0])
    """
    w = latent_matrix("sefa_directions", weight, latent_axis).detach().double()
    norms = w.norm(dim=0, keepdim=True)
    w = w / torch.where(norms > 0, norms, 1.0)
    gram = w @ w.mT
    values, vectors = eigh((gram + gram.mT) / 2)
    directions = _fixed_signs(vectors.mT.flip(0))
    strengths = values.flip(0).clamp(min=0)
    return directions.to(weight.dtype), strengths.to(weight.dtype)


def latent_matrix(
    function: str, weight: Tensor, latent_axis: int | None
) -> Float[Tensor, "latent features"]:
    """The weight as ``(latent, features)``; raises unless it is finite and real."""
    if weight.ndim < 2 or 0 in weight.shape:
        raise ShapeError(
            f"{function} needs a weight (out, in) or (in, out, ...), got {tuple(weight.shape)}; "
            f"pass the weight that multiplies the latent"
        )
    axis = axis_of_latent(tuple(weight.shape), latent_axis)
    if axis is None or isinstance(latent_axis, bool) or not 0 <= axis < weight.ndim:
        raise ConfigError(
            f"{function} needs latent_axis to be an axis of the weight, got {latent_axis} for "
            f"shape {tuple(weight.shape)}; 1 for nn.Linear, 0 for a transposed convolution"
        )
    require_tensor(function, "weight", weight)
    require_finite(function, "weight", weight)
    return weight.movedim(axis, 0).flatten(1)


def axis_of_latent(shape: tuple[int, ...], latent_axis: int | None) -> int | None:
    """Which axis of a weight is the latent, counted from the front; None where nothing tells."""
    if latent_axis is not None:
        return latent_axis + len(shape) if latent_axis < 0 else latent_axis
    if len(shape) != 2:
        return 0
    return None if shape[0] == shape[1] else int(shape[1] < shape[0])


def _fixed_signs(directions: Tensor) -> Tensor:
    size = directions.abs()
    # The first of the largest: argmax of a mask is its first hit.
    first = (size >= (1 - _TIE) * size.amax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)
    signs = directions.gather(1, first).sign()
    return directions * signs


@checked
def reflection_product(
    vectors: Float[Tensor, "n k"], *, columns: int | None = None
) -> Float[Tensor, "n r"]:
    """First columns of ``H_1 H_2 ... H_k`` with ``H_i = 1 - 2 v_i v_i^T / (v_i^T v_i)``.

    Args:
        vectors: ``(n, k)``, one ``v_i`` per column, none of them zero.
        columns: How many columns of the product; None is ``k``.

    Returns:
        ``(n, columns)`` with orthonormal columns, whatever the vectors are.

    Raises:
        ShapeError: Not a matrix, or ``columns`` outside ``[1, n]``.
        ConfigError: A vector is zero.

    Note:
        Differentiable any number of times.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ShapeError(
            f"reflection_product needs vectors (n, k), one per column, got {tuple(vectors.shape)}; "
            f"make a single vector a matrix with v.unsqueeze(-1)"
        )
    n, k = vectors.shape
    columns = k if columns is None else columns
    if not 1 <= columns <= n:
        raise ShapeError(
            f"reflection_product needs columns between 1 and {n}, got {columns} for vectors of "
            f"shape {tuple(vectors.shape)}; a product has no more columns than rows"
        )
    if known((vectors == 0).all(dim=0).any()):
        raise ConfigError(
            f"reflection_product needs vectors that are not zero, got a zero column in vectors of "
            f"shape {tuple(vectors.shape)}; a zero vector has no plane to reflect in: drop it"
        )
    return _reflected(vectors, columns)


def _reflected(vectors: Float[Tensor, "n k"], columns: int) -> Float[Tensor, "n r"]:
    """The product, without a look at the numbers; a zero vector reflects nothing."""
    n = len(vectors)
    # Powers of two are exact, and keep squares within the dtype.
    scaled = vectors / power_of_two_scale(vectors.mT.unsqueeze(-2)).squeeze(-1).mT
    norms = scaled.norm(dim=0, keepdim=True)
    unit = scaled / torch.where(norms > 0, norms, 1.0)
    product = torch.eye(n, columns, dtype=vectors.dtype, device=vectors.device)
    for v in unit.unbind(1)[::-1]:
        product = product - 2 * torch.outer(v, v @ product)
    return product


@checked
class HouseholderProjector(nn.Module):
    """Parametrisation of a weight as ``U diag(s) V^T``, ``U`` and ``V`` products of reflections.

    For ``torch.nn.utils.parametrize``; ``householder_projector`` registers it. The reflection
    vectors are trained; ``s`` is a buffer, zero beyond ``rank``. So the weight stays low rank and
    its directions orthonormal at every step of any optimizer. ``V``, on the side of the latent,
    holds the directions as columns; ``householder_directions`` gives them as rows.

    Args:
        rank: Directions that are kept; None keeps all that the weight can have.
        scales: ``"one"``, as published, is for a layer that is trained further. ``"mean"`` and
            ``"singular"`` keep the size of the weight; ``"singular"`` at full rank keeps the
            weight.
        latent_axis: See ``sefa_directions``.
    """

    scales: Tensor

    def __init__(
        self, *, rank: int | None = None, scales: Scales = "one", latent_axis: int | None = None
    ) -> None:
        super().__init__()
        self.rank = rank
        self.kind: Scales = scales
        self.latent_axis = latent_axis
        self.weight_shape: tuple[int, ...] = ()
        self.register_buffer("scales", torch.empty(0))

    def forward(
        self, feature_vectors: Float[Tensor, "m r"], latent_vectors: Float[Tensor, "d r"]
    ) -> Float[Tensor, "*shape"]:
        """The weight, in its own shape."""
        u = _reflected(feature_vectors, feature_vectors.shape[1])
        v = _reflected(latent_vectors, latent_vectors.shape[1])
        return _as_weight((v * self.scales.to(v.dtype)) @ u.mT, self.weight_shape, self.latent_axis)

    def right_inverse(
        self, weight: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "m r"], Float[Tensor, "d r"]]:
        """Reflections of the nearest weight of this kind; also sets the scales.

        Raises:
            RankError: ``rank`` is outside ``[1, min(latent, features)]``.
        """
        self.weight_shape = tuple(weight.shape)
        v, s, u = _kept(weight, self.rank, self.latent_axis)
        pairs = [_reflections(side) for side in (u, v)]
        signs = pairs[0][1] * pairs[1][1]
        self.scales = (_diagonal(s, self.kind) * signs).to(weight.dtype)
        feature_vectors, latent_vectors = (vectors.to(weight.dtype) for vectors, _ in pairs)
        return feature_vectors, latent_vectors

    def extra_repr(self) -> str:
        """The rank that is kept, and the kind of scales."""
        return f"rank={len(self.scales) or self.rank}, scales={self.kind!r}"


@checked
def householder_projection(
    weight: Float[Tensor, "*shape"],
    *,
    rank: int | None = None,
    scales: Scales = "one",
    latent_axis: int | None = None,
) -> Float[Tensor, "*shape"]:
    """The weight with orthonormal directions in place of its own; the projector starts there.

    With the SVD of the weight as ``(latent, features)``, ``W = V diag(s) U^T``, the first ``rank``
    directions are kept and their singular values replaced.

    Args:
        weight: The weight that multiplies the latent, in the shapes of ``sefa_directions``.
        rank: Directions that are kept; None is ``min(latent, features)``.
        scales: In place of the singular values: ``"one"``; their ``"mean"``; or the
            ``"singular"`` values themselves, which only cuts the rank.
        latent_axis: See ``sefa_directions``.

    Returns:
        Same shape, dtype and device as ``weight``.

    Raises:
        ShapeError: Fewer than two axes, or an empty one.
        ConfigError: Not real floating-point, no such axis, or unknown ``scales``.
        RankError: ``rank`` is outside ``[1, min(latent, features)]``.
        NonFiniteError: ``weight`` holds NaN or infinity.

    Note:
        Not differentiable; train ``householder_projector``.

    Source:
        Song, Zhang, Sebe and Wang (2023), arXiv:2307.08012.
    """
    v, s, u = _kept(weight, rank, latent_axis)
    matrix = (v * _diagonal(s, scales)) @ u.mT
    return _as_weight(matrix, tuple(weight.shape), latent_axis).to(weight.dtype).contiguous()


@checked
def householder_projector(
    module: nn.Module,
    name: str = "weight",
    *,
    rank: int | None = None,
    scales: Scales = "one",
    latent_axis: int | None = None,
) -> nn.Module:
    """Hold a latent weight of a trained module by reflections from now on, in place.

    The weight becomes its ``householder_projection`` and keeps that form under training. Its
    parameters are new: build the optimizer again. To undo it, call
    ``torch.nn.utils.parametrize.remove_parametrizations``, which keeps the present weight.

    The published projector is then trained for about 1 % of the steps, with ones on the diagonal
    and rank ten. Scales that the layer multiplies by outside of its weight are left out.

    Args:
        module: Its owner, for instance the first transposed convolution of a generator.
        name: The weight's attribute.
        rank: Directions that are kept; None is all.
        scales: See ``householder_projection``.
        latent_axis: See ``sefa_directions``.

    Returns:
        The module.

    Raises:
        ConfigError: No such parameter, or a setting out of its range.
        RankError: ``rank`` is outside ``[1, min(latent, features)]``.

    Source:
        Song, Zhang, Sebe and Wang (2023), arXiv:2307.08012.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, nn.Parameter):
        raise ConfigError(
            f"householder_projector needs a parameter {name!r} of {type(module).__name__}, got "
            f"{type(weight).__name__}; name the weight that multiplies the latent"
        )
    latent_matrix("householder_projector", weight, latent_axis)
    projector = HouseholderProjector(rank=rank, scales=scales, latent_axis=latent_axis)
    # The weight changes on purpose: it becomes the nearest of its kind.
    parametrize.register_parametrization(module, name, projector, unsafe=True)
    return module


@checked
@torch.no_grad()
def householder_directions(module: nn.Module, name: str = "weight") -> Float[Tensor, "r d"]:
    """Directions of a weight that ``householder_projector`` holds, orthonormal, one per row.

    Moved along row ``i``, the latent moves column ``i`` of ``U`` alone, as far as its scale says.
    With all of them kept, ``rotated(generator, directions)`` is the generator along them.

    Args:
        module: Its owner.
        name: The weight's attribute.

    Returns:
        ``(rank, latent)``, in the order of the singular values that they started from.

    Raises:
        ConfigError: The weight is not held by reflections.
    """
    held = getattr(module, "parametrizations", {})
    if name not in held or not isinstance(held[name][0], HouseholderProjector):
        raise ConfigError(
            f"householder_directions needs {name!r} of {type(module).__name__} to be held by "
            f"reflections; call householder_projector(module, {name!r}) first"
        )
    return reflection_product(held[name].original1).mT


def _kept(weight: Tensor, rank: int | None, latent_axis: int | None) -> tuple[Tensor, ...]:
    """Leading ``(v, s, u)`` in working precision, columns on the latent and the feature side."""
    matrix = latent_matrix("householder_projection", weight, latent_axis).detach()
    most = min(matrix.shape)
    kept = most if rank is None else rank
    if isinstance(kept, bool) or not 1 <= kept <= most:
        raise RankError(
            f"householder_projection needs rank between 1 and {most}, got {rank} for a weight of "
            f"shape {tuple(weight.shape)}; leave it out to keep every direction"
        )
    v, s, uh = thin_svd(matrix)
    return v[:, :kept], s[:kept], uh[:kept].mT


def _as_weight(
    matrix: Float[Tensor, "latent features"], shape: tuple[int, ...], latent_axis: int | None
) -> Float[Tensor, "*shape"]:
    """The inverse of ``latent_matrix``."""
    axis = axis_of_latent(shape, latent_axis)
    assert axis is not None
    features = shape[:axis] + shape[axis + 1 :]
    return matrix.reshape(shape[axis], *features).movedim(0, axis)


def _diagonal(s: Tensor, scales: Scales) -> Tensor:
    match scales:
        case "one":
            return torch.ones_like(s)
        case "mean":
            return s.mean().expand_as(s)
        case "singular":
            return s
        case _:
            assert_never(scales)


def _reflections(q: Float[Tensor, "n r"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, " r"]]:
    """Vectors whose product of reflections is ``q`` up to the sign of each column, and the signs.

    LAPACK gives reflectors with ``v_i = 1`` at place ``i``, and the identity where nothing is to
    be reflected. Ours reflects there, too, which turns a sign.
    """
    lower, _ = torch.geqrf(q)
    vectors = lower.tril(-1) + torch.eye(*q.shape, dtype=q.dtype, device=q.device)
    signs = (reflection_product(vectors) * q).sum(dim=0).sign()
    return vectors, signs
