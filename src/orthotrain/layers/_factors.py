"""How a module holds a weight in factors: the storage under every low-rank layer.

A dense layer becomes a low-rank one in place: the same module object changes its class, and
the dense weight's own Parameter object changes its shape. References, hooks, parameter groups
and optimizer state keys therefore stay valid. There are two forms:

- frozen bases, ``u @ core @ vh``: the Parameter becomes the ``core``. ``u`` and ``vh`` are
  buffers: saved and moved with the module, never trained, never seen by an optimizer;
- trained bases, ``left @ right``: the Parameter becomes the ``pair``, ``left^T`` and ``right``
  side by side, and there is no buffer. ``u``, ``core`` and ``vh`` are computed when read.

A state dict tells them apart by names: ``pair`` alone is the one form, ``core`` with ``u`` and
``vh`` the other, ``weight`` the dense one. Shapes decide nothing, and a mixture is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn

from orthotrain.errors import CheckpointError, RankError
from orthotrain.layers._cost import Bases
from orthotrain.layers._factor_names import factor_names, pair_name
from orthotrain.layers._forms import form_of
from orthotrain.layers._parameters import rename_, resize_parameter_
from orthotrain.linalg import thin_svd
from orthotrain.linalg.factor_pair import balanced_pair, halves, orthonormal_form
from orthotrain.linalg.matrices import WeightLayout
from orthotrain.linalg.orthonormality import are_orthonormal
from orthotrain.linalg.random_factors import random_factors_like


class Factors(NamedTuple):
    """``weight = u @ core @ vh``; with several blocks, one such product per block.

    ``u`` is ``(m, k)``, ``core`` ``(k, k)`` and ``vh`` ``(k, n)``, each with a leading
    ``blocks`` dimension where there is more than one block.
    """

    u: Tensor
    core: Tensor
    vh: Tensor


class LowRankModule(nn.Module):
    """A layer that holds one or more of its weights as ``u @ core @ vh`` or ``left @ right``.

    Loading a state dict follows it: the rank becomes the checkpoint's, and a dense checkpoint
    turns the layer dense again.
    """

    _dense_class: type[nn.Module]
    weight_names: ClassVar[tuple[str, ...]] = ("weight",)
    on_request: ClassVar[str] = ""  # the name in ``compress(also=...)``, where it is only then cut

    @classmethod
    def weights_of(cls, module: nn.Module) -> tuple[str, ...]:
        """Names of the weights that a dense or low-rank module may hold in factors."""
        return cls.weight_names

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
        parameter = weight_parameter(module, weight)
        if is_factored(module, weight) and parameter is not None:
            in_blocks = parameter.ndim == 3
            return next(each for each in layouts if (each.blocks > 1) == in_blocks)
        return layouts[0]

    def factors(self, weight: str = "weight") -> Factors:
        """The tensors that hold a weight; of a pair ``u, core, vh`` are computed, no gradient."""
        if holds_pair(self, weight):
            left, right = self.pair_of(weight)
            return Factors(*(t.to(left.dtype) for t in orthonormal_form(left, right)))
        u, core, vh = (getattr(self, name) for name in factor_names(weight))
        return Factors(u, core, vh)

    def layout_of_pair(self, name: str) -> WeightLayout:
        """The layout of the weight whose pair has this name."""
        return self.layout(self, next(w for w in self.weights_of(self) if pair_name(w) == name))

    def pair_of(self, weight: str = "weight") -> tuple[Tensor, Tensor]:
        """``left`` and ``right`` of a weight that is held as a pair, as views of it."""
        pair: Tensor = getattr(self, pair_name(weight))
        return halves(pair, self.layout(self, weight).m)

    def rank_of(self, weight: str) -> int:
        """Rank of a weight held in factors."""
        parameter = weight_parameter(self, weight)
        assert parameter is not None
        return parameter.shape[-2]  # of a core both sides, of a pair this one

    @property
    def rank(self) -> int:
        """Rank of the (first) weight held in factors."""
        return self.rank_of(next(name for name in self.weights_of(self) if is_factored(self, name)))

    def two_factors(self, weight: str = "weight") -> tuple[Tensor, Tensor]:
        """The weight as one product of two: ``left, right``, or ``u @ core, vh``."""
        if holds_pair(self, weight):
            return self.pair_of(weight)
        u, core, vh = self.factors(weight)
        return u @ core, vh

    def materialized(self, weight: str = "weight") -> Tensor:
        """The dense weight, differentiable in the core or the pair."""
        left, right = self.two_factors(weight)
        return self.layout(self, weight).tensor(left @ right)

    @torch.no_grad()
    def project_(self, dense: Tensor, weight: str = "weight") -> None:
        """Set the core to the part of a dense weight that lies inside the basis.

        A pair, whose bases are trained, becomes the best approximation of its rank, and so does
        a weight whose basis is none: after ``to_empty`` it is whatever was in memory.
        """
        matrix = self.layout(self, weight).matrix(dense)
        if matrix.is_meta:
            return
        if not holds_pair(self, weight):
            u, core, vh = self.factors(weight)
            if are_orthonormal(u.mT) and are_orthonormal(vh):
                core.copy_(u.mT @ matrix @ vh.mT)
                return
        k, (p, s, qh) = self.rank_of(weight), thin_svd(matrix)
        p, s, qh = p[..., :k], s[..., :k], qh[..., :k, :]
        if holds_pair(self, weight):
            getattr(self, pair_name(weight)).copy_(balanced_pair(p, s, qh))
            return
        for held, value in zip(self.factors(weight), (p, torch.diag_embed(s), qh), strict=True):
            held.copy_(value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        follow_state_dict(self, state_dict, prefix, *args)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def is_factored(module: nn.Module, weight: str = "weight") -> bool:
    """Whether a weight of the module is held as ``u @ core @ vh`` or as a pair."""
    frozen = isinstance(module, LowRankModule) and factor_names(weight)[0] in module._buffers
    return frozen or holds_pair(module, weight)


def holds_pair(module: nn.Module, weight: str = "weight") -> bool:
    """Whether a weight of the module is held as ``left @ right``, both trained."""
    name = pair_name(weight)  # a plain attribute in replicas of DataParallel and inside FSDP1
    held = name in module._parameters or name in module.__dict__
    return held and isinstance(module, LowRankModule)


def parameter_name(module: nn.Module, weight: str) -> str:
    """Name of the Parameter behind a weight: of the dense weight itself, the core or the pair."""
    if holds_pair(module, weight):
        return pair_name(weight)
    return factor_names(weight)[1] if is_factored(module, weight) else weight


def weight_parameter(module: nn.Module, weight: str) -> nn.Parameter | None:
    """The Parameter behind a weight: the dense weight itself, the core or the pair."""
    return module._parameters.get(parameter_name(module, weight))


def hold_factors_(
    module: nn.Module, weight: str, low_rank_class: type[LowRankModule], u: Tensor, vh: Tensor
) -> None:
    """Hold a weight whose Parameter has become the core; ``u`` and ``vh`` become buffers."""
    u_name, core_name, vh_name = factor_names(weight)
    _hold(module, weight, core_name, low_rank_class)
    module._buffers[u_name], module._buffers[vh_name] = u, vh


def hold_pair_(module: nn.Module, weight: str, low_rank_class: type[LowRankModule]) -> None:
    """Hold a weight whose Parameter has become the pair; there is no buffer beside it."""
    u_name, _, vh_name = factor_names(weight)
    _hold(module, weight, pair_name(weight), low_rank_class)
    module._buffers.pop(u_name, None)
    module._buffers.pop(vh_name, None)


def hold_dense_(module: nn.Module, weight: str) -> None:
    """Hold a weight densely whose Parameter has become the dense weight again."""
    assert isinstance(module, LowRankModule)
    u_name, _, vh_name = factor_names(weight)
    rename_(module._parameters, parameter_name(module, weight), weight)
    module._buffers.pop(u_name, None)
    module._buffers.pop(vh_name, None)
    if not any(is_factored(module, name) for name in module.weights_of(module)):
        module.__class__ = module.__dict__.pop("_dense_class")


def factorize_(  # noqa: PLR0913  # what is factored, and into what
    module: nn.Module,
    weight: str,
    low_rank_class: type[LowRankModule],
    *,
    rank: int | None,
    layout: WeightLayout | None = None,
    bases: Bases = "frozen",
    drawn: bool = False,
) -> None:
    """Replace a dense weight by its best approximation of a rank; ``None`` is full rank.

    With frozen bases as ``u @ core @ vh``, with trained ones as a pair. A weight that was just
    ``drawn`` is none yet: below full rank it becomes ``random_factors_like`` it, undecomposed.

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
        s = core.diagonal(dim1=-2, dim2=-1)
    else:
        # A row of padding is zero, and stays so.
        if drawn and k < layout.full_rank and bool(parameter.any(-1).all()):
            u, s, vh = random_factors_like(matrix, k)
        else:
            u, s, vh = thin_svd(matrix)
            u, s, vh = u[..., :k], s[..., :k], vh[..., :k, :]
        core = torch.diag_embed(s)
    if bases == "trained":
        resize_parameter_(parameter, balanced_pair(u, s, vh))
        hold_pair_(module, weight, low_rank_class)
        return
    resize_parameter_(parameter, core)
    frozen = (t.to(parameter.dtype).contiguous().clone() for t in (u, vh))
    hold_factors_(module, weight, low_rank_class, *frozen)


def follow_state_dict(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
) -> None:
    """Give the module the structure that a state dict holds for it; values are copied later.

    Names tell the form: ``pair`` alone stands for trained bases, ``core`` with its buffers ``u``
    and ``vh`` for frozen ones. Shapes are checked afterwards; they decide nothing.

    A ``load_state_dict`` pre-hook: the last of ``args`` is torch's list of error messages, to
    which a checkpoint whose factors contradict the layer's sizes is added.

    Raises:
        CheckpointError: The state dict holds two layers for this one, also where the load is not
            strict: the layer would keep the values that it has.
    """
    low_rank_class = low_rank_class_of(module)
    if low_rank_class is None:
        return
    forms = ("weight", "pair", "core", "0.weight")  # of each of the two
    if all(any(f"{prefix}{i}.{form}" in state_dict for form in forms) for i in (0, 1)):
        raise CheckpointError(
            f"{prefix.removesuffix('.') or 'the model'} is two layers in what is loaded, by "
            "to_factored, and one layer in this model; load it into a model after to_factored of "
            "the same ranks, read a file of orthotrain.save with orthotrain.load, or a folder of "
            "Transformers with from_pretrained"
        )
    for weight in low_rank_class.weights_of(module):
        parameter = weight_parameter(module, weight)
        if parameter is None:
            continue
        u_name, core_name, vh_name = (prefix + name for name in factor_names(weight))
        stacked = state_dict.get(prefix + pair_name(weight))
        if stacked is not None:
            beside = [n for n in (u_name, core_name, vh_name, prefix + weight) if n in state_dict]
            message = _follow_pair(module, weight, low_rank_class, stacked, beside)
        elif core_name in state_dict:
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
    form = form_of(type(module))
    assert form is None or issubclass(form, LowRankModule)
    return form


_TRY: Final = (
    "load it into the model it was saved from, or compress the file again and leave this layer "
    "out (--skip, skip=)"
)


def _follow_factors(
    module: nn.Module,
    weight: str,
    low_rank_class: type[LowRankModule],
    held: list[Tensor | None],
) -> str | None:
    """Take the structure of stored factors; a message where they do not fit the layer."""
    layouts = low_rank_class.layouts(module, weight)
    shapes = tuple(tuple(t.shape) if t is not None else None for t in held)
    rank = (shapes[1] or (0,))[-1]
    fitting = [each for each in layouts if each.factor_shapes(rank) == shapes]
    if not fitting or not 1 <= rank <= fitting[0].full_rank:
        return (
            f"the checkpoint holds u, core, vh of shapes {shapes}, this layer's weight of shape "
            f"{layouts[0].shape} needs {layouts[0].factor_shapes(max(rank, 1))}; {_TRY}"
        )
    parameter = weight_parameter(module, weight)
    assert parameter is not None
    u_shape, core_shape, vh_shape = fitting[0].factor_shapes(rank)
    if parameter.shape != core_shape:
        resize_parameter_(parameter, parameter.new_full(core_shape, torch.nan))
    known = module._buffers.get(factor_names(weight)[0])
    if known is not None and known.shape == u_shape:
        return None  # values are copied into the tensors that are there, which may be shared
    u, vh = (parameter.detach().new_full(each, torch.nan) for each in (u_shape, vh_shape))
    hold_factors_(module, weight, low_rank_class, u, vh)
    return None


def _follow_pair(
    module: nn.Module,
    weight: str,
    low_rank_class: type[LowRankModule],
    stacked: Tensor,
    beside: list[str],
) -> str | None:
    """Take the structure of a stored pair; a message where it does not fit the layer."""
    if beside:
        return (
            f"the checkpoint holds a pair and {beside}, two forms of one weight; keep one of them"
        )
    layouts, shape = low_rank_class.layouts(module, weight), tuple(stacked.shape)
    rank = shape[-2] if len(shape) > 1 else 0
    fitting = [each for each in layouts if each.pair_shape(rank) == shape]
    if not fitting or not 1 <= rank <= fitting[0].full_rank:
        return (
            f"the checkpoint holds a pair of shape {shape}, this layer's weight of shape "
            f"{layouts[0].shape} needs {layouts[0].pair_shape(max(rank, 1))}; {_TRY}"
        )
    parameter = weight_parameter(module, weight)
    assert parameter is not None
    if parameter.shape != shape:
        resize_parameter_(parameter, parameter.new_full(shape, torch.nan))
    hold_pair_(module, weight, low_rank_class)
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
        resize_parameter_(parameter, parameter.new_full(shape, torch.nan))
    hold_dense_(module, weight)
    return None


def _hold(module: nn.Module, weight: str, name: str, low_rank_class: type[LowRankModule]) -> None:
    """Keep the weight's Parameter under a name."""
    rename_(module._parameters, parameter_name(module, weight), name)
    if not isinstance(module, LowRankModule):
        module.__dict__["_dense_class"] = module.__class__
        module.__class__ = low_rank_class
