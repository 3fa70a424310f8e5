"""The weights a gradient method acts on, and how each of them is read as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import LBFGS, Optimizer

from orthotrain.errors import ConfigError, StateError
from orthotrain.methods.protocol import Bound, Run
from orthotrain.methods.select import Pattern, named_modules_clean, select_parameters


@dataclass(frozen=True)
class Layout:
    """A weight as ``blocks`` matrices of ``m`` outputs by ``n`` inputs.

    Attributes:
        shape: Shape of the weight.
        sizes: ``(blocks, m, n)``.
        inputs_first: The weight has its inputs in front, like that of a transposed convolution.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, int, int]
    inputs_first: bool = False

    def matrices(self, tensor: Tensor) -> Tensor:
        """``(blocks, m, n)`` of a tensor of ``shape``, in any memory format."""
        if self.inputs_first:
            blocks, m, _ = self.sizes
            inputs = self.shape[0] // blocks
            tensor = tensor.reshape(blocks, inputs, m, -1).transpose(1, 2)
        return tensor.reshape(self.sizes)

    def tensor(self, matrices: Tensor) -> Tensor:
        """``(blocks, m, n)`` as a tensor of ``shape``."""
        if self.inputs_first:
            blocks, m, _ = self.sizes
            inputs = self.shape[0] // blocks
            matrices = matrices.reshape(blocks, m, inputs, -1).transpose(1, 2)
        return matrices.reshape(self.shape)


class Target:
    """One weight that a method acts on.

    Attributes:
        name: The layer's name where the weight is the layer's ``weight``, else the parameter's.
        parameter: The trained tensor.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, owner: nn.Module, attribute: str
    ) -> None:
        self.name = name
        self.parameter = parameter
        self._owner = owner
        self._attribute = attribute
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """How the parameter is read now; a weight that becomes low-rank changes its shape."""
        shape = tuple(self.parameter.shape)
        if self._layout is None or self._layout.shape != shape:
            own = self._owner._parameters
            held = (name for name in own if own[name] is self.parameter)
            self._layout = _layout(shape, self._owner, next(held, self._attribute))
        return self._layout

    def __str__(self) -> str:
        blocks, m, n = self.layout.sizes
        return f"{self.name} ({f'{blocks} of ' if blocks > 1 else ''}{m}x{n})"


def find_targets(
    method: str, run: Run, params: Pattern | Sequence[Pattern], *, reads_gradient: bool
) -> list[Target]:
    """The weights that ``params`` name, checked for what a method on matrices needs.

    Args:
        method: Class name, for messages.
        run: The run the method is bound to.
        params: As in :func:`orthotrain.methods.select_parameters`.
        reads_gradient: The method acts on gradients, so they must not be computed anew inside
            the step.

    Raises:
        ConfigError: Nothing matches; a parameter is no matrix, is sharded, lazy, complex, or not
            in the optimizer; or the optimizer recomputes gradients inside its step.
    """
    if not isinstance(params, Pattern) and not params:
        raise ConfigError(f'{method}: params is empty; name a layer, or "*.weight" for all')
    if reads_gradient and isinstance(run.optimizer, LBFGS):
        raise ConfigError(
            f"{method} acts on the gradient between backward and step, and LBFGS computes "
            "gradients anew inside its step; take an optimizer that uses the gradient it is given"
        )
    places = _places(run.model)
    chosen = select_parameters(run.model, params)
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    _refuse(
        method,
        [(name, _fault(parameter, held=id(parameter) in held)) for name, parameter in chosen],
    )
    targets = []
    for name, parameter in chosen:
        owner, attribute, layer = places[parameter]
        targets.append(Target(layer or name, parameter, owner, attribute))
    return targets


def _fault(parameter: nn.Parameter, *, held: bool) -> str | None:
    """Why a method on matrices cannot take a parameter, or ``None``."""
    if is_lazy(parameter):
        return "is not initialized yet; run one batch through the model first"
    if hasattr(parameter, "device_mesh"):
        return "is sharded (DTensor), and no process has the whole matrix; use DDP instead"
    if parameter.ndim < 2 or parameter.numel() == 0:
        return (
            f"of shape {tuple(parameter.shape)} is no matrix (FSDP's flat shards are none, "
            "either); name weights of linear layers or convolutions"
        )
    if not parameter.is_floating_point():
        return f"is {parameter.dtype}; only real floating-point weights have these matrices"
    if not held:
        return "is not in the optimizer, so its steps would not be seen; add its group first"
    return None


def _refuse(method: str, found: Sequence[tuple[str, str | None]]) -> None:
    """One error for all parameters that share the first fault's words."""
    faults = [(name, fault) for name, fault in found if fault is not None]
    if not faults:
        return
    first = faults[0][1]
    names = [name for name, fault in faults if fault == first]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    raise ConfigError(f"{method}: {', '.join(names[:3])}{more} {first}")


def _places(model: nn.Module) -> dict[nn.Parameter, tuple[nn.Module, str, str]]:
    """Module, attribute and, for a layer's main weight, the layer's name, of each parameter."""
    places: dict[nn.Parameter, tuple[nn.Module, str, str]] = {}
    modules = list(named_modules_clean(model))
    inside: dict[nn.Module, tuple[nn.Module, str, str]] = {}
    for name, module in modules:
        lists = module._modules.get("parametrizations")
        for attribute, child in lists._modules.items() if lists is not None else ():
            if isinstance(child, ParametrizationList):
                inside[child] = (module, attribute, name)
    for name, module in modules:
        for attribute, parameter in module._parameters.items():
            if parameter is None or parameter in places:
                continue
            if module in inside:
                owner, weight, layer = inside[module]
                main = weight == "weight" and attribute == "original"
                places[parameter] = (owner, weight, layer if main else "")
            else:
                main = attribute in ("weight", "core")
                places[parameter] = (module, attribute, name if main else "")
    return places


def _layout(shape: tuple[int, ...], owner: nn.Module, attribute: str) -> Layout:
    # Transformers' Conv1D, (in, out), needs no case: what is done to a matrix does not tell it
    # from its transpose.
    m, n = shape[0], torch.Size(shape[1:]).numel()
    if attribute.endswith("core"):
        # A low-rank layer's core: a matrix, or a stack of them.
        return Layout(shape, (torch.Size(shape[:-2]).numel(), shape[-2], shape[-1]))
    if isinstance(owner, nn.MultiheadAttention) and attribute == "in_proj_weight":
        return Layout(shape, (3, m // 3, n))
    if isinstance(owner, _ConvTransposeNd) and len(shape) == 2 + len(owner.kernel_size):
        groups, taps = owner.groups, torch.Size(shape[2:]).numel()
        return Layout(shape, (groups, shape[1], m // groups * taps), inputs_first=True)
    if isinstance(owner, _ConvNd) and not owner.transposed and m % owner.groups == 0:
        return Layout(shape, (owner.groups, m // owner.groups, n))
    return Layout(shape, (1, m, n))


class GradientBound(Bound):
    """Base of bound methods that act on gradients: targets, groups, and a check of the calls."""

    def __init__(self, name: str, run: Run, targets: Sequence[Target]) -> None:
        self._name = name
        self._run = run
        self._targets = targets
        self._armed = False

    def _arm(self) -> None:
        self._armed = True

    def _disarm(self) -> None:
        if not self._armed:
            raise StateError(
                f"{self._name} acts before optimizer.step(), and this step came without; with "
                "auto=False, call handle.before_step() right before every optimizer.step()"
            )
        self._armed = False


def counted(targets: Sequence[Target]) -> str:
    """``1 weight`` or ``3 weights``."""
    return f"{len(targets)} weight{'s' if len(targets) != 1 else ''}"


def listed(targets: Sequence[Target]) -> str:
    """Names and sizes of the first few, for a line of a plan."""
    return ", ".join(map(str, targets[:4])) + (", ..." if len(targets) > 4 else "")


def require_learning_rate(method: str, run: Run) -> None:
    """Raise ConfigError unless every parameter group has a learning rate."""
    if any("lr" not in group for group in run.optimizer.param_groups):
        raise ConfigError(
            f"{method}: a parameter group of {type(run.optimizer).__name__} has no 'lr', and the "
            "step is measured in learning rates"
        )


def groups_of(optimizer: Optimizer) -> dict[nn.Parameter, dict[str, Any]]:
    """The parameter group of every parameter; loading a state makes new ones."""
    return {p: group for group in optimizer.param_groups for p in group["params"]}


def learning_rate(group: dict[str, Any]) -> float:
    """The group's learning rate as a plain number, whatever it is kept as."""
    return float(group["lr"])


def gradient_scale(optimizer: Optimizer) -> float:
    """By how much the gradients are too large: a fused optimizer divides by ``GradScaler``'s scale.

    ``GradScaler`` hands fused optimizers its scale as an attribute during the step; the others
    get gradients that it divided itself.
    """
    scale = optimizer.__dict__.get("grad_scale")
    return 1.0 if scale is None else float(scale)


def dense_gradient(method: str, target: Target) -> Tensor | None:
    """The gradient of a target, ``None`` where there is none.

    Raises:
        ConfigError: It is sparse.
    """
    gradient = target.parameter.grad
    if gradient is not None and gradient.layout != torch.strided:
        raise ConfigError(
            f"{method}: the gradient of {target.name} is {gradient.layout}, need a dense one; "
            "build the embedding with sparse=False"
        )
    return gradient
