"""Optimizer state follows its parameter into another basis. The only file that opens it.

``basis_change`` holds the rules by which a tensor moves; here they are applied to an optimizer:
what moves, what stays, what has to start again, and whether the result fits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Muon, Optimizer, SparseAdam

from orthotrain._resized import earlier_shapes, has_left_model
from orthotrain.errors import ConfigError, OrthotrainWarning, StateError
from orthotrain.methods._wrapped_optimizer import held_optimizers, wrappers_around
from orthotrain.methods.basis_change import (
    BasisChange,
    CoordinateChange,
    Kind,
    described,
    expected_shapes,
    is_shapeless,
    moved_entries,
    unknown_entries,
)

__all__ = [
    "BasisChange",
    "StateMode",
    "check_shapes",
    "check_supported",
    "drop_outlived",
    "resize",
    "state_bytes",
]

StateMode = Literal["rotate", "slice", "reset"]


def resize(
    optimizer: Optimizer,
    parameter: nn.Parameter,
    change: CoordinateChange,
    *,
    new_shape: Sequence[int],
    mode: StateMode = "rotate",
    name: str = "",
) -> list[str]:
    """Take the state of one parameter into new coordinates, in place.

    Call it once per parameter, after ``parameter.set_(core)`` under ``no_grad`` and with
    ``parameter.grad = None``. Groups, other parameters and entries that belong to no parameter
    stay as they are; so do plain numbers and one-element tensors such as ``step``. Optimizers that
    are held follow, too, and so do wrappers that ``attach`` was given. New tensors are contiguous,
    hold no graph and lie at new addresses, so a captured CUDA graph must be captured again.

    Args:
        optimizer: Any ``torch.optim.Optimizer``.
        parameter: Its parameter, already in the new shape. Without state nothing is done.
        change: From the old coordinates to the new ones.
        new_shape: Shape of the parameter now, ``(*g, p, q)``.
        mode: ``"rotate"`` changes coordinates, ``"slice"`` keeps the leading block without
            rotating, ``"reset"`` starts again, step count included. In five runs each on the
            embedded digits the three differed less than the seeds did.
        name: Qualified name of the parameter, for the warning.

    Returns:
        Keys of the state that started again; empty where all of it followed.

    Raises:
        ConfigError: The optimizer cannot train a core of this shape (``check_supported``), or
            ``mode`` is none of the three.
        StateError: The parameter does not have ``new_shape``, or ``change`` leads elsewhere.

    Warns:
        OrthotrainWarning: Part of the state was not understood (another shape, an integer
            dtype, tensors in containers), so all of this parameter's state started again:
            moments that restart beside an old step count take steps of 3 to 6 times the
            learning rate.
    """
    check_supported(optimizer, new_shape=new_shape)
    if mode not in ("rotate", "slice", "reset"):
        raise ConfigError(f"resize needs mode 'rotate', 'slice' or 'reset', got {mode!r}")
    shape = tuple(new_shape)
    if tuple(parameter.shape) != shape or math.prod(change.after) != math.prod(shape):
        raise StateError(
            f"resize needs a parameter that already has its new shape {shape} and a change that "
            f"leads there, got a parameter of {tuple(parameter.shape)} and a change to "
            f"{change.after}; call parameter.set_(core) first"
        )
    lost: list[str] = []
    around = wrappers_around(optimizer)
    for member in _family(optimizer):
        kept: Kind = "copied" if any(member is wrapper for wrapper in around) else "squared"
        lost += _follow(member, parameter, change, mode, name or "a parameter", kept)
    return lost


def check_supported(optimizer: Optimizer, *, new_shape: Sequence[int]) -> None:
    """Refuse an optimizer that cannot train a core of ``new_shape``, before anything changes.

    Raises:
        ConfigError: ``SparseAdam`` (a core's gradient is dense), ``Muon`` with one core per
            group (it takes matrices only), or tensors in the shape of parameters that lie outside
            of the state.
    """
    for member in (optimizer, *wrappers_around(optimizer)):
        if place := _outside_of_state(member, optimizer):
            raise ConfigError(
                f"{type(member).__name__} keeps tensors in the shape of parameters in {place}, "
                "and these cannot follow a weight into another shape; keep them in "
                "state[parameter], or attach methods that change no shapes"
            )
    for member in _family(optimizer):
        if isinstance(member, SparseAdam):
            raise ConfigError(
                "SparseAdam takes sparse gradients only and the gradient of a core is dense; "
                "give the low-rank layers to Adam and keep SparseAdam for embeddings"
            )
        if isinstance(member, Muon) and len(new_shape) != 2:
            raise ConfigError(
                f"Muon takes matrices only, got a core of shape {tuple(new_shape)} with one "
                "matrix per group; give this weight to another optimizer or skip its layer"
            )


def orthogonalizes(optimizer: Optimizer) -> bool:
    """Whether it makes the step of each tensor orthogonal by itself, as ``torch.optim.Muon``."""
    return any(isinstance(member, Muon) for member in _family(optimizer))


def check_shapes(optimizer: Optimizer) -> None:
    """Refuse a state that does not fit its parameters, before an optimizer steps on it.

    ``load_state_dict`` takes state of any shape, and fused AdamW on CPU then ends the process.
    Checked is what has a known shape: tensors named as in ``torch.optim``, Adafactor's factors,
    the flat history of L-BFGS. A foreign optimizer may flatten such a tensor or, beside objects
    of its own (GaLore's projector), shape it as it likes.

    Raises:
        StateError: Names the group, the parameter's index in it, the key and both shapes.
    """
    misfits: list[str] = []
    for member in _family(optimizer):
        misfits += _flat_misfits(member) if isinstance(member, LBFGS) else _misfits(member)
    if misfits:
        more = f" (and {len(misfits) - 3} more)" if len(misfits) > 3 else ""
        raise StateError(
            f"{type(optimizer).__name__}: state does not fit the model: {'; '.join(misfits[:3])}"
            f"{more}. Load model and optimizer from the same checkpoint"
        )


def drop_outlived(optimizer: Optimizer, *, every_misfit: bool = False) -> None:
    """Let state start again that has the shape its parameter had before.

    ``to_dense``, ``to_factored``, ``compress`` and ``restore_structure`` change the parameters and
    know nothing of optimizers, nor does a layer that follows a checkpoint. Expanding such state,
    ``u m vh``, would leave second moments of nearly zero wherever the old basis did not reach,
    and the first steps there several times too long. So its step count starts again, too.

    Args:
        optimizer: About to step.
        every_misfit: Also state that does not fit for another reason, where it is torch's: a
            copied parameter does not know what shapes it had.

    Warns:
        OrthotrainWarning: Some did; names the first.
    """
    outlived: list[str] = []
    _warn_of_replaced(optimizer)
    for member in _family(optimizer):
        if isinstance(member, LBFGS):
            outlived += _drop_flat(member, every_misfit)
        else:
            outlived += _drop_each(member, every_misfit)
    if outlived:
        more = f" and of {len(outlived) - 1} more" if len(outlived) > 1 else ""
        warnings.warn(
            f"{type(optimizer).__name__}: state of {outlived[0]}{more} starts again: the model "
            "changed its form, and what was kept has the shape from before",
            OrthotrainWarning,
            stacklevel=4,  # who calls step
        )


def _warn_of_replaced(optimizer: Optimizer) -> None:
    held = [p for group in optimizer.param_groups for p in group["params"] if has_left_model(p)]
    if held:
        warnings.warn(
            f"to_factored replaced weights that {type(optimizer).__name__} holds ({len(held)}) by "
            "others, which it does not train; build it again from model.parameters()",
            OrthotrainWarning,
            stacklevel=5,  # who calls step
        )


def _drop_each(member: Optimizer, every_misfit: bool) -> list[str]:
    outlived = []
    every_misfit = every_misfit and _is_torchs(member)
    for i, group in enumerate(member.param_groups):
        for j, parameter in enumerate(group["params"]):
            earlier, state = earlier_shapes(parameter), member.state.get(parameter) or {}
            keys = list(_misfitting(state, parameter.shape)) if every_misfit else []
            if earlier:
                keys += [key for key in state if _is_outlived(key, state[key], parameter, earlier)]
            if keys:
                was, now = described(state[keys[0]]), tuple(parameter.shape)
                name = f"param_groups[{i}]['params'][{j}]"
                outlived.append(f"{name}, {keys[0]!r} {was} for {now},")
                _restart(member, parameter)
    return outlived


def _drop_flat(member: LBFGS, every_misfit: bool) -> list[str]:
    if not every_misfit and not any(map(earlier_shapes, member.param_groups[0]["params"])):
        return []
    if found := _flat_misfits(member):
        _restart_history(member, "reset", "")
    return found


def _is_outlived(
    key: str, value: object, parameter: nn.Parameter, earlier: Iterable[tuple[int, ...]]
) -> bool:
    """Whether an entry belongs to one of the earlier shapes of its parameter."""

    def expected(shape: Sequence[int]) -> tuple[int, ...]:
        return expected_shapes(shape).get(key, tuple(shape))

    has = [tuple(tensor.shape) for tensor in _tensors([value]) if tensor.numel() > 1]
    possible = {form for shape in earlier for form in (expected(shape), (math.prod(shape),))}
    return not possible.isdisjoint(each for each in has if each != expected(parameter.shape))


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of memory that the optimizer's state holds, each storage counted once."""
    sizes: dict[tuple[torch.device, int], int] = {}
    for member in _family(optimizer):
        for tensor in _tensors(member.state):
            storage = tensor.untyped_storage()
            sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _family(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer, those it holds (mixtures) and those around it; a shared state comes once."""
    states: list[object] = []
    members = [optimizer, *wrappers_around(optimizer)]
    for member in members:  # grows while it is walked
        held = held_optimizers(member).values()
        members += [v for v in held if all(v is not other for other in members)]
        state = getattr(member, "state", None)
        if isinstance(state, Mapping) and not any(state is other for other in states):
            states.append(state)
            yield member


def _outside_of_state(member: Any, optimizer: Optimizer) -> str | None:
    """Where a tensor in the shape of a parameter lies that is neither state nor parameter."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    own, shapes = {id(p) for p in held}, {tuple(p.shape) for p in held if p.ndim > 1}
    places = {f".{n}": v for n, v in vars(member).items() if n not in ("state", "param_groups")}
    for i, group in enumerate(getattr(member, "param_groups", ())):
        places |= {f".param_groups[{i}][{n!r}]": v for n, v in group.items()}
    for place, value in places.items():
        if any(id(t) not in own and tuple(t.shape) in shapes for t in _tensors(value)):
            return place
    return None


def _follow(
    member: Optimizer,
    parameter: nn.Parameter,
    change: CoordinateChange,
    mode: StateMode,
    name: str,
    unlisted: Kind,
) -> list[str]:
    if isinstance(member, LBFGS):
        return _restart_history(member, mode, name)
    state = member.state.get(parameter)
    if not state:
        return []
    if mode == "reset":
        return _restart(member, parameter)
    if unknown := unknown_entries(state, change):
        _warn_of_restart(
            f"{type(member).__name__} keeps {', '.join(unknown)} for {name} (a matrix of "
            f"{change.before} before), which cannot be taken to its new shape "
            f"{tuple(parameter.shape)}; this parameter's state starts again"
        )
        return _restart(member, parameter)
    state.update(
        moved_entries(state, change, new_shape=parameter.shape, mode=mode, unlisted=unlisted)
    )
    return []


def _restart(member: Optimizer, parameter: nn.Parameter) -> list[str]:
    """Leave the parameter as before its first step; moments and step count go together."""
    lost = [str(key) for key in member.state.pop(parameter)]
    groups = (
        g for g in getattr(member, "param_groups", ()) if any(p is parameter for p in g["params"])
    )
    group = next(groups, None) or getattr(member, "defaults", {})
    if isinstance(member, Adagrad):  # fills its state when built, some releases only then
        start = member.defaults["initial_accumulator_value"]
        twin = Adagrad([parameter], initial_accumulator_value=start, fused=group["fused"])
        member.state[parameter] = twin.state[parameter]
    if isinstance(member, SGD) and group["fused"] and group["momentum"]:
        # Fused SGD takes either no buffer at all or one of every parameter in the group.
        member.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return lost


def _restart_history(member: LBFGS, mode: StateMode, name: str) -> list[str]:
    """L-BFGS keeps one flat history over all parameters, so all of it starts again."""
    lost = [str(key) for state in member.state.values() for key in state]
    if lost and mode != "reset":
        _warn_of_restart(
            f"LBFGS keeps one flat history over all parameters ({', '.join(map(repr, lost))}), "
            f"which cannot follow {name} into its new shape; the history starts again"
        )
    member.state.clear()
    member._numel_cache = None  # torch counts the entries once; the stepping test covers this
    return lost


def _warn_of_restart(message: str) -> None:
    # Levels: here, _follow or _restart_history, resize, and its caller is who acts.
    warnings.warn(message, OrthotrainWarning, stacklevel=4)


def _flat_misfits(member: LBFGS) -> list[str]:
    parameters = member.param_groups[0]["params"]
    total = sum(p.numel() * (2 if p.is_complex() else 1) for p in parameters)
    state = member.state.get(parameters[0], {})
    return [
        f"{key!r} has {state[key].numel()} entries for {total} in the parameters"
        for key in ("d", "prev_flat_grad")
        if isinstance(state.get(key), Tensor) and state[key].numel() != total
    ]


def _misfits(member: Optimizer) -> list[str]:
    ours = _is_torchs(member)
    found = []
    for i, group in enumerate(getattr(member, "param_groups", ())):
        for j, parameter in enumerate(group["params"]):
            state = member.state.get(parameter) or {}
            if not ours and _keeps_objects(state):
                continue
            found += [
                f"param_groups[{i}]['params'][{j}] has shape {tuple(parameter.shape)}, its "
                f"{key!r} {tuple(state[key].shape)}"
                for key, size in _misfitting(state, parameter.shape).items()
                if ours or state[key].numel() != size
            ]
    return found


def _misfitting(state: Mapping[str, Any], shape: Sequence[int]) -> dict[str, int]:
    """Keys of known names whose tensors have another shape, and how many numbers they need."""
    return {
        key: math.prod(needed)
        for key, needed in expected_shapes(shape).items()
        if isinstance(value := state.get(key), Tensor) and value.ndim
        if tuple(value.shape) != needed
    }


def _is_torchs(member: Optimizer) -> bool:
    return type(member).__module__.startswith("torch.optim.")


def _keeps_objects(state: Mapping[str, Any]) -> bool:
    return not all(isinstance(value, Tensor) or is_shapeless(value) for value in state.values())


def _tensors(value: object) -> Iterator[Tensor]:
    """Plain tensors in nested containers and inside tensor subclasses."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            inner, _ = value.__tensor_flatten__()
            yield from _tensors([getattr(value, key) for key in inner])
        else:
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
