"""Orthogonal weights for linear layers and convolutions: torch's parametrisation, flattened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg import polar_factor
from orthotrain.linalg._inputs import result_dtype
from orthotrain.linalg.matrices import WeightLayout, weight_layout

_Module = TypeVar("_Module", bound=nn.Module)


@checked
def orthogonal_weight(module: _Module, name: str = "weight") -> _Module:
    """Keep a weight orthonormal while it is trained, as a matrix of outputs by all the rest.

    The weight is flattened to ``(out, in * kh * kw)``, to one such matrix per group where a
    convolution has groups, and written as a product of Householder reflections, by
    ``torch.nn.utils.parametrizations.orthogonal``. So its rows are orthonormal if there are at most
    as many as columns, and else its columns, whatever an optimizer does. It starts as
    the polar factor of the weight that was there.

    Applied to the 4-D weight itself, torch's parametrisation makes every ``kh x kw`` slice
    orthogonal. The weight is then not orthogonal.

    Args:
        module: An ``nn.Linear``, a convolution or any module with such a parameter; changed in
            place. Attach before the optimizer has taken a step: its state would not fit.
        name: The parameter: 2-D or more. Outputs are its first dimension; of a transposed
            convolution's weight, the second.

    Returns:
        ``module``. ``module.parametrizations.weight.original`` is the Parameter object that
        ``module.weight`` was, in its shape, device and dtype, so an optimizer made before goes on;
        methods select it by that name, for instance ``"conv1.parametrizations.weight.original"``.
        ``module.weight`` is computed at each use, in float32 for half precision.
        ``torch.nn.utils.parametrize.remove_parametrizations(module, "weight")`` makes it a plain
        Parameter again, with the value it has. ``module.reset_parameters()``, where there is one,
        draws anew and starts from the polar factor of that.

    Raises:
        ConfigError: No such parameter, one that is computed or parametrized already, or one that
            is not real floating-point.
        ShapeError: The parameter is a vector, or empty.
        NonFiniteError: The parameter holds NaN or infinity.

    Note:
        Differentiable everywhere. Weight decay pulls the reflections, not the weight, and so turns
        the weight for no reason: leave ``original`` out of it. With torch's parametrisation alone
        one step of decay makes the weight zero, as signs on the diagonal of ``original`` are
        rounded towards it; here they are kept in a buffer, and the diagonal is not used.

        Directions that the initial weight lacks are filled in, so a zero weight is no error.

    Source:
        Householder products as in ``torch.linalg.householder_product``; orthogonal weights before
        a spectral layer, Song, Sebe and Wang, arXiv:2207.02119.

    Example:
        >>> conv = orthogonal_weight(nn.Conv2d(4, 6, 3))
        >>> rows = conv.weight.flatten(1)
        >>> (rows @ rows.mT - torch.eye(6)).abs().max().item() < 1e-5
        True
    """
    weight = _plain_parameter(module, name)
    is_kernel = isinstance(module, _ConvNd) and name == "weight"
    layout = (
        weight_layout(module, name, weight.shape)
        if is_kernel
        else WeightLayout.of_blocks(weight.shape)
    )
    flat = _FlatOrthogonal(weight, layout)
    draw = getattr(type(module), "reset_parameters", None)
    parametrize.register_parametrization(module, name, flat)
    if draw is not None:  # torch has made a class for this one module
        setattr(type(module), "reset_parameters", partialmethod(_reset, name, draw))  # noqa: B010
    return module


def is_ours(parametrization: nn.Module) -> bool:
    """Whether ``orthogonal_weight`` has put it on a weight."""
    return isinstance(parametrization, _FlatOrthogonal)


@torch.no_grad()
def _reset(module: nn.Module, name: str, draw: Callable[[nn.Module], None]) -> None:
    """Draw what the layer's own class draws, and take the polar factor for the weight."""
    with parametrize.cached():  # so that the class writes into the weight that is read below
        draw(module)
        drawn = getattr(module, name)
    setattr(module, name, drawn)


class _FlatOrthogonal(nn.Module):
    """From Householder vectors, in the shape of the weight, to an orthonormal weight."""

    signs: Tensor
    reflections: Any

    def __init__(self, weight: Tensor, layout: WeightLayout) -> None:
        super().__init__()
        self.layout = layout
        matrix = self._flat(weight.detach())
        # torch's map without trivialization, which would store a square matrix of the longer side
        # and draw from the global random state. It is made on a stand-in of the flattened shape.
        stand_in = nn.Module()
        one = torch.eye(*matrix.shape[-2:], dtype=matrix.dtype, device=matrix.device)
        stand_in.weight = nn.Parameter(one.expand_as(matrix).contiguous())
        parametrizations.orthogonal(
            stand_in, orthogonal_map="householder", use_trivialization=False
        )
        self.reflections = stand_in.get_submodule("parametrizations.weight.0")
        self.register_buffer("signs", matrix.new_ones(*matrix.shape[:-2], min(matrix.shape[-2:])))

    def forward(self, original: Tensor) -> Tensor:
        flat = self._flat(original)
        flat = torch.diagonal_scatter(flat, self.signs.to(flat), dim1=-2, dim2=-1)
        # Autocast leaves products of reflections alone.
        weight: Tensor = self.reflections(flat)
        return self._shaped(weight, original)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Householder vectors of the polar factor of a weight."""
        if weight.is_meta:
            return weight
        q = polar_factor(self._flat(weight), complete=True)
        flat = self.reflections.right_inverse(q)
        signs = flat.diagonal(dim1=-2, dim2=-1)
        # A zero matrix has none, and becomes a part of the identity.
        self.signs.copy_(torch.where(signs == 0, 1.0, signs))
        return self._shaped(flat, weight)

    def _flat(self, weight: Tensor) -> Tensor:
        """One matrix per group, ``(groups, out / groups, rest)``, in float32 at least."""
        return self.layout.matrices(weight.to(result_dtype(weight.dtype)))

    def _shaped(self, flat: Tensor, like: Tensor) -> Tensor:
        """The way back, to the shape and dtype of the weight."""
        return self.layout.tensor(flat).to(like.dtype)

    def extra_repr(self) -> str:
        """How many matrices the weight is."""
        return f"groups={self.layout.blocks}" if self.layout.blocks > 1 else ""


def _plain_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter of that name; raises where it cannot be made orthonormal."""
    kind = type(module).__name__
    if parametrize.is_parametrized(module, name):
        raise ConfigError(
            f"orthogonal_weight: {name!r} of a {kind} is parametrized already; remove that first "
            f"with torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
        )
    weight = module._parameters.get(name)
    if weight is None:
        own = [key for key, value in module._parameters.items() if value is not None]
        raise ConfigError(
            f"orthogonal_weight needs a module with a parameter {name!r}, got a {kind} with "
            f"{own or 'no parameters'}; pass the layer itself, or make a low-rank layer dense"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ConfigError(
            f"orthogonal_weight needs a weight whose shape is known, got a lazy {kind}; run it "
            f"once on a batch first"
        )
    if not weight.is_floating_point():
        raise ConfigError(
            f"orthogonal_weight needs a real floating-point parameter, got {name!r} of dtype "
            f"{weight.dtype}"
        )
    if weight.ndim < 2 or weight.numel() == 0:
        raise ShapeError(
            f"orthogonal_weight needs a parameter with two dimensions or more, none of them zero, "
            f"got {name!r} of shape {tuple(weight.shape)}; a vector has no orthonormal rows"
        )
    return weight
