"""The weights a method acts on one by one, each read as matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import LBFGS, Optimizer

from orthotrain._doors import checked
from orthotrain._sharded import USE_DDP, is_flat, require_whole
from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.linalg.matrices import WeightLayout, weight_layout
from orthotrain.methods.protocol import Run
from orthotrain.methods.select import Pattern, named_modules_clean, select_parameters


class Target:
    """One weight that a method acts on.

    Attributes:
        name: The layer's name where the weight is the layer's ``weight``, else the parameter's.
        parameter: The trained tensor, which may change its shape while it is trained.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, owner: nn.Module, attribute: str
    ) -> None:
        self.name = name
        self.parameter = parameter
        self._owner = owner
        self._attribute = attribute
        self._layout: WeightLayout | None = None

    @property
    def layout(self) -> WeightLayout:
        """How the parameter is read now; a weight that becomes low-rank changes its shape."""
        shape = tuple(self.parameter.shape)
        if self._layout is None or self._layout.shape != shape:
            own = self._owner._parameters
            held = (name for name in own if own[name] is self.parameter)
            self._layout = weight_layout(self._owner, next(held, self._attribute), shape)
        return self._layout

    def __str__(self) -> str:
        return f"{self.name} ({self.layout})"


@checked
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
    if is_flat(run.model):
        require_whole(method, run.model, USE_DDP)
    places = _places(run.model)
    chosen = select_parameters(run.model, params)
    owners = run.owners()
    if reads_gradient and any(isinstance(owners.get(p), LBFGS) for _, p in chosen):
        raise ConfigError(
            f"{method} acts on the gradient between backward and step, and LBFGS computes "
            "gradients anew inside its step; take an optimizer that uses the gradient it is given"
        )
    _refuse(
        method,
        [(name, _fault(parameter, held=parameter in owners)) for name, parameter in chosen],
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
            f"of shape {tuple(parameter.shape)} is no matrix; name weights of linear layers or "
            "convolutions"
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
                main = attribute in ("weight", "core", "pair")
                places[parameter] = (module, attribute, name if main else "")
    return places


def owners_of(targets: Sequence[Target], run: Run) -> set[Optimizer]:
    """The optimizers that train some targets."""
    owners = run.owners()
    return {owners[target.parameter] for target in targets}


def of_this_step(targets: Sequence[Target], run: Run) -> Sequence[Target]:
    """The targets whose optimizer steps now; all of them where one optimizer has all."""
    if not run.has_several:
        return targets
    groups = run.groups()
    return [target for target in targets if target.parameter in groups]


def left_the_model(targets: Sequence[Target], model: nn.Module) -> list[str]:
    """Names of targets whose parameter the model has no longer: their layer was replaced."""
    there = {id(parameter) for parameter in model.parameters()}
    return [target.name for target in targets if id(target.parameter) not in there]


def counted(targets: Sequence[Target]) -> str:
    """``1 weight`` or ``3 weights``."""
    return f"{len(targets)} weight{'s' if len(targets) != 1 else ''}"


def listed(targets: Sequence[Target]) -> str:
    """Names and sizes of the first few, for a line of a plan."""
    return ", ".join(map(str, targets[:4])) + (", ..." if len(targets) > 4 else "")


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


def finite_matrices(method: str, target: Target) -> Tensor:
    """The weight of a target as matrices ``(blocks, m, n)``, without gradient.

    Raises:
        NonFiniteError: It holds NaN or infinity; the message names it.
    """
    weight = target.parameter.detach()
    if not bool(weight.isfinite().all()):
        raise NonFiniteError(
            f"{method}: the weight of {target.name} holds NaN or infinity; find the step that made "
            "them, or train with a lower learning rate"
        )
    return target.layout.matrices(weight)
