"""How a module holds a weight as ``u @ core @ vh``: the storage under every low-rank layer.

A dense layer becomes a low-rank one in place: the same module object changes its class, and
the dense weight's own Parameter object changes its shape to become the core. References,
hooks, parameter groups and optimizer state keys therefore stay valid. ``u`` and ``vh`` are
buffers: saved and moved with the module, never trained, never seen by an optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from orthotrain.errors import RankError
from orthotrain.linalg import thin_svd
from orthotrain.linalg.matrices import WeightLayout


class Factors(NamedTuple):
    """``weight = u @ core @ vh``; with several blocks, one such product per block.

    ``u`` is ``(m, k)``, ``core`` ``(k, k)`` and ``vh`` ``(k, n)``, each with a leading
    ``blocks`` dimension where there is more than one block.
    """

    u: Tensor
    core: Tensor
    vh: Tensor


class LowRankModule(nn.Module):
    """A layer that holds one or more of its weights as ``u @ core @ vh``.

    Loading a state dict follows it: the rank becomes the checkpoint's, and a dense checkpoint
    turns the layer dense again.
    """

    _dense_class: type[nn.Module]
    weight_names: ClassVar[tuple[str, ...]] = ("weight",)

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """The layouts a weight can be factored in, the default first.

        From the sizes that the module knows, not from its tensors, so it can be asked of a
        dense and of a low-rank module alike.
        """
        raise TypeError(f"{cls.__name__} must define layouts(module, weight)")

    @classmethod
    def layout(cls, module: nn.Module, weight: str) -> WeightLayout:
        """The layout a weight is factored in, or the default one while it is dense."""
        layouts = cls.layouts(module, weight)
        if is_factored(module, weight):
            in_blocks = getattr(module, factor_names(weight)[0]).ndim == 3
            return next(each for each in layouts if (each.blocks > 1) == in_blocks)
        return layouts[0]

    def factors(self, weight: str = "weight") -> Factors:
        """The tensors that hold a weight."""
        u, core, vh = (getattr(self, name) for name in factor_names(weight))
        return Factors(u, core, vh)

    @property
    def rank(self) -> int:
        """Rank of the (first) weight held in factors."""
        held = next(name for name in self.weight_names if is_factored(self, name))
        return self.factors(held).core.shape[-1]

    def materialized(self, weight: str = "weight") -> Tensor:
        """The dense weight, differentiable in the core."""
        u, core, vh = self.factors(weight)
        return (u @ core @ vh).reshape(self.layout(self, weight).shape)

    @torch.no_grad()
    def project_(self, dense: Tensor, weight: str = "weight") -> None:
        """Set the core to the part of a dense weight that lies inside the basis."""
        u, core, vh = self.factors(weight)
        core.copy_(u.mT @ self.layout(self, weight).matrix(dense) @ vh.mT)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        follow_state_dict(self, state_dict, prefix, *args)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def readable(weight: str) -> Any:
    """A property that reads a weight as torch's own code does: dense, materialized, or None.

    Materialized on every access; writing into that tensor changes nothing.
    """

    def read(self: LowRankModule) -> Tensor | None:
        if is_factored(self, weight):
            return self.materialized(weight)
        return self._parameters[weight]

    return property(read, doc=f"``{weight}`` of torch's layer, materialized where it is factored.")


def factor_names(weight: str) -> tuple[str, str, str]:
    """Names of ``u``, ``core`` and ``vh`` of a weight: ``q_proj_weight`` gives ``q_proj_u``..."""
    stem = weight.removesuffix("weight")
    return f"{stem}u", f"{stem}core", f"{stem}vh"


def is_factored(module: nn.Module, weight: str = "weight") -> bool:
    """Whether a weight of the module is held as ``u @ core @ vh``."""
    return isinstance(module, LowRankModule) and factor_names(weight)[0] in module._buffers


def weight_parameter(module: nn.Module, weight: str) -> nn.Parameter | None:
    """The Parameter behind a weight: the dense weight itself, or the core."""
    name = factor_names(weight)[1] if is_factored(module, weight) else weight
    return module._parameters.get(name)


def resize_parameter_(parameter: nn.Parameter, value: Tensor) -> None:
    """Give the same Parameter object another value and shape, and no gradient.

    ``set_`` under ``no_grad`` is the only way that keeps the object, a living old loss and
    DistributedDataParallel all working.
    """
    with torch.no_grad():
        parameter.set_(value.to(parameter.dtype).contiguous().clone())  # type: ignore[call-overload]
    parameter.grad = None


def hold_factors_(
    module: nn.Module, weight: str, low_rank_class: type[LowRankModule], u: Tensor, vh: Tensor
) -> None:
    """Hold a weight whose Parameter has become the core; ``u`` and ``vh`` become buffers."""
    u_name, core_name, vh_name = factor_names(weight)
    if not is_factored(module, weight):
        _rename(module._parameters, weight, core_name)
        if not isinstance(module, LowRankModule):
            module.__dict__["_dense_class"] = module.__class__
            module.__class__ = low_rank_class
    module._buffers[u_name], module._buffers[vh_name] = u, vh


def hold_dense_(module: nn.Module, weight: str) -> None:
    """Hold a weight densely whose Parameter has become the dense weight again."""
    assert isinstance(module, LowRankModule)
    u_name, core_name, vh_name = factor_names(weight)
    del module._buffers[u_name], module._buffers[vh_name]
    _rename(module._parameters, core_name, weight)
    if not any(is_factored(module, name) for name in module.weight_names):
        module.__class__ = module.__dict__.pop("_dense_class")


def factorize_(
    module: nn.Module,
    weight: str,
    low_rank_class: type[LowRankModule],
    *,
    rank: int | None,
    layout: WeightLayout | None = None,
) -> None:
    """Replace a dense weight by its best approximation of a rank; ``None`` is full rank.

    Raises:
        RankError: ``rank`` is outside ``[1, min(m, n)]``.
    """
    layout = layout or low_rank_class.layout(module, weight)
    k = layout.full_rank if rank is None else rank
    if not 1 <= k <= layout.full_rank:
        raise RankError(
            f"{low_rank_class.__name__} needs a rank from 1 to {layout.full_rank} for a weight of "
            f"shape {layout.shape}, got {k}; choose a rank in that range"
        )
    parameter = module._parameters[weight]
    assert parameter is not None
    matrix = layout.matrix(parameter.detach())
    if matrix.is_meta:  # shapes only, for a model whose values come later
        u, core, vh = (matrix.new_empty(shape) for shape in layout.factor_shapes(k))
    else:
        u, s, vh = thin_svd(matrix)
        u, core, vh = u[..., :k], torch.diag_embed(s[..., :k]), vh[..., :k, :]
    resize_parameter_(parameter, core)
    frozen = (t.to(parameter.dtype).contiguous().clone() for t in (u, vh))
    hold_factors_(module, weight, low_rank_class, *frozen)


def follow_state_dict(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
) -> None:
    """Give the module the structure that a state dict holds for it; values are copied later.

    A ``load_state_dict`` pre-hook: the last of ``args`` is torch's list of error messages, to
    which a checkpoint whose factors contradict the layer's sizes is added.
    """
    low_rank_class = low_rank_class_of(module)
    if low_rank_class is None:
        return
    for weight in low_rank_class.weight_names:
        parameter = weight_parameter(module, weight)
        if parameter is None:
            continue
        u_name, core_name, vh_name = (prefix + name for name in factor_names(weight))
        if core_name in state_dict:
            held = [state_dict.get(name) for name in (u_name, core_name, vh_name)]
            message = _follow_factors(module, weight, low_rank_class, held)
        elif prefix + weight in state_dict and is_factored(module, weight):
            message = _follow_dense(module, weight, low_rank_class, state_dict[prefix + weight])
        else:
            message = None
        problem = f"{prefix}{weight}: {message}"
        if message is not None and problem not in args[-1]:  # a pre-hook may have said it before
            args[-1].append(problem)


def low_rank_class_of(module: nn.Module) -> type[LowRankModule] | None:
    """The low-rank class for a dense or low-rank module; None where there is none.

    By exact type: a subclass may compute something else in its ``forward``.
    """
    if isinstance(module, LowRankModule):
        return type(module)
    return _LOW_RANK_CLASSES.get(_qualified_name(type(module)))


def register_low_rank(*dense_classes: str) -> Any:
    """Class decorator: the low-rank form of these dense classes, by qualified name.

    By name, so that a class of another library needs no import.
    """

    def register(low_rank_class: type[LowRankModule]) -> type[LowRankModule]:
        for name in dense_classes:
            _LOW_RANK_CLASSES[name] = low_rank_class
        return low_rank_class

    return register


_LOW_RANK_CLASSES: dict[str, type[LowRankModule]] = {}


def _follow_factors(
    module: nn.Module,
    weight: str,
    low_rank_class: type[LowRankModule],
    held: list[Tensor | None],
) -> str | None:
    """Take the structure of stored factors; a message where they do not fit the layer."""
    layouts = low_rank_class.layouts(module, weight)
    shapes = tuple(tuple(t.shape) if t is not None else None for t in held)
    core_shape = shapes[1]
    assert core_shape is not None
    rank = core_shape[-1] if core_shape else 0
    fitting = [each for each in layouts if each.factor_shapes(rank) == shapes]
    if not fitting or not 1 <= rank <= fitting[0].full_rank:
        return (
            f"the checkpoint holds u, core, vh of shapes {shapes}, this layer's weight of shape "
            f"{layouts[0].shape} needs {layouts[0].factor_shapes(max(rank, 1))}; load it into the "
            "model it was saved from"
        )
    parameter = weight_parameter(module, weight)
    assert parameter is not None
    u_shape, new_core_shape, vh_shape = fitting[0].factor_shapes(rank)
    if parameter.shape != new_core_shape:
        resize_parameter_(parameter, parameter.new_empty(new_core_shape))
    if is_factored(module, weight) and low_rank_class.layout(module, weight) == fitting[0]:
        assert isinstance(module, LowRankModule)
        if module.factors(weight).u.shape == u_shape:
            return None  # values are copied into the tensors that are there, which may be shared
    u, vh = (parameter.detach().new_empty(shape) for shape in (u_shape, vh_shape))
    hold_factors_(module, weight, low_rank_class, u, vh)
    return None


def _follow_dense(
    module: nn.Module, weight: str, low_rank_class: type[LowRankModule], held: Tensor
) -> str | None:
    """Hold a weight densely, as it is stored; a message where it does not fit the layer."""
    shape = low_rank_class.layout(module, weight).shape
    if held.shape != shape:
        return (
            f"the checkpoint holds a dense weight of shape {tuple(held.shape)}, this layer needs "
            f"{shape}; load it into the model it was saved from"
        )
    parameter = weight_parameter(module, weight)
    assert parameter is not None
    if parameter.shape != shape:  # a tied weight was restored through its other owner
        resize_parameter_(parameter, parameter.new_empty(shape))
    hold_dense_(module, weight)
    return None


def _rename(parameters: dict[str, Any], old: str, new: str) -> None:
    """Rename a key in place and keep its position, so that parameter order never changes."""
    items = [(new if name == old else name, value) for name, value in parameters.items()]
    parameters.clear()
    parameters.update(items)


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
