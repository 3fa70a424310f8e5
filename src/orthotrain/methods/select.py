"""Parameters and modules by object or name pattern, through any wrapper around the model."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from fnmatch import fnmatchcase
from typing import Final

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from orthotrain._doors import checked
from orthotrain.errors import ConfigError

#: What a user may name: an fnmatch pattern, a module or a parameter.
Pattern = str | nn.Module | nn.Parameter

# Under which name each wrapper keeps the inner module. By the name of its class, since some of
# these are slow to import: a model may well have children that are called like that.
_INNER_NAMES: Final = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "_fsdp_wrapped_module"
    ),
}
_MODULE_WRAPPERS = (DistributedDataParallel, DataParallel, AveragedModel)

#: What wrappers put into names.
WRAPPER_NAMES: Final = frozenset({*_INNER_NAMES.values(), "module"})


def inner_name(module: nn.Module) -> str | None:
    """Under which name the wrapper ``module`` keeps what it wraps; ``None`` if it is none."""
    # Registered children only: a compiled module forwards unknown attributes to its inner one.
    children = module._modules
    if "module" in children and isinstance(module, _MODULE_WRAPPERS):
        return "module"
    if WRAPPER_NAMES.isdisjoint(children):
        return None
    kinds = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return next((name for kind in kinds if (name := _INNER_NAMES.get(kind)) in children), None)


def _inner(module: nn.Module) -> nn.Module | None:
    """The module directly inside the wrapper ``module``; ``None`` when it is no wrapper."""
    name = inner_name(module)
    return None if name is None else module._modules[name]


def wrappers(model: nn.Module) -> list[nn.Module]:
    """The wrappers around a model, outermost first; empty for a bare one."""
    found: list[nn.Module] = []
    while (inner := _inner(model)) is not None:
        found.append(model)
        model = inner
    return found


@checked
def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, inside DDP, DataParallel, FSDP, ``torch.compile`` and averaged copies."""
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def clean_name(name: str) -> str:
    """A pattern as a user writes it, without what wrappers put into names.

    ``module.`` counts as a wrapper's only at the front, where DDP puts it: a model may well have
    a child of that name.
    """
    parts = [part for part in name.split(".") if part not in WRAPPER_NAMES - {"module"}]
    while parts and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def named_modules_clean(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Like ``model.named_modules()``, wrappers left out of both the modules and the names.

    A module that is used twice appears once, under its first name, unless ``remove_duplicate``
    is off.
    """
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        module = unwrap(module)
        if remove_duplicate and module in seen:
            return
        seen.add(module)
        yield name, module
        for child_name, child in module._modules.items():
            if child is not None:
                yield from walk(child, f"{name}.{child_name}" if name else child_name)

    yield from walk(model, "")


def named_parameters_clean(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """Like ``model.named_parameters()`` with clean names; a tied parameter appears once."""
    seen: set[nn.Parameter] = set()
    for module_name, module in named_modules_clean(model, remove_duplicate=remove_duplicate):
        for name, parameter in module._parameters.items():
            if parameter is None or (remove_duplicate and parameter in seen):
                continue
            seen.add(parameter)
            yield (f"{module_name}.{name}" if module_name else name), parameter


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights ``module`` owns: ``weight`` or what it became, ``core`` or ``pair``; else all.

    Of a parametrized weight, what is trained: its ``parametrizations.weight.original``.
    """
    own = dict(module.named_parameters(recurse=False))
    lists = module._modules.get("parametrizations")
    if lists is not None and (computed := lists._modules.get("weight")) is not None:
        return list(computed.parameters(recurse=False))
    for name in ("weight", "core", "pair"):
        if name in own:
            return [own[name]]
    return [
        p
        for name, p in own.items()
        if name.endswith(("weight", "_core", "_pair")) or name.startswith("weight_")
    ]


def _as_list(patterns: Pattern | Sequence[Pattern]) -> list[Pattern]:
    listed = [patterns] if isinstance(patterns, Pattern) else list(patterns)
    for pattern in listed:
        if not isinstance(pattern, Pattern):
            raise ConfigError(
                f"need a name pattern, a module or a parameter, got {pattern!r}; "
                "a layer of nn.Sequential is named by its index as a string, such as '2'"
            )
    return listed


def _nothing(pattern: str, names: Sequence[str], kind: str) -> ConfigError:
    """An error for a pattern without a match, with the names that come closest."""
    stem = pattern.strip("*?.")
    close = difflib.get_close_matches(stem, names, n=5, cutoff=0.5)
    close += [name for name in names if stem and stem in name and name not in close][:3]
    if close:
        advice = f"close to it: {', '.join(close)}"
    else:
        shown = ", ".join(names[:8]) or "none at all"
        advice = f"the model has: {shown}" + (", ..." if len(names) > 8 else "")
    return ConfigError(f"no {kind} matches {pattern!r}; {advice}")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, clean_name(pattern))


def _parameters_by_name(
    pattern: str,
    modules: Sequence[tuple[str, nn.Module]],
    parameters: Sequence[tuple[str, nn.Parameter]],
) -> set[nn.Parameter]:
    chosen: set[nn.Parameter] = set()
    answered: set[nn.Parameter] = set()  # own parameters of a module that gave its weight
    for name, module in modules:
        # The root's name is empty, so "*" would take the model for a layer.
        named = bool(name) or len(modules) == 1
        if named and _matches(name, pattern) and (weights := _weights(module)):
            chosen.update(weights)
            answered.update(module.parameters(recurse=False))
    chosen.update(p for name, p in parameters if p not in answered and _matches(name, pattern))
    if not chosen:
        if any(name and _matches(name, pattern) for name, _ in modules):
            raise ConfigError(
                f"{pattern!r} matches a module without a weight of its own; "
                f"to mean all weights inside it, write {pattern + '.*'!r}"
            )
        raise _nothing(
            pattern, [name for name, _ in (*modules[1:], *parameters)], "module or parameter"
        )
    return chosen


@checked
def select_parameters(
    model: nn.Module, patterns: Pattern | Sequence[Pattern]
) -> list[tuple[str, nn.Parameter]]:
    """The parameters that ``patterns`` name, in the order of the model, each once.

    Args:
        model: Any module, wrapped or not.
        patterns: One of these or a sequence of them. A string is an fnmatch pattern on qualified
            names, in which ``*`` matches dots, too. Where it matches a module that has a weight,
            that weight is meant and not the module's bias; a bias is named by its own name,
            ``"*.bias"``. A module means its weight, a parameter itself.

    Returns:
        Pairs of clean qualified name and parameter.

    Raises:
        ConfigError: A pattern matches nothing (close names are given), an object is not part of
            the model, or a module has no weight of its own.
    """
    # Under every name they have: the second of two tied layers may be the one that is named.
    modules = list(named_modules_clean(model, remove_duplicate=False))
    parameters = list(named_parameters_clean(model, remove_duplicate=False))
    chosen: set[nn.Parameter] = set()
    members = {module for _, module in modules}
    known = {parameter for _, parameter in parameters}
    for pattern in _as_list(patterns):
        if isinstance(pattern, str):
            chosen |= _parameters_by_name(pattern, modules, parameters)
        elif isinstance(pattern, nn.Parameter):
            if pattern not in known:
                raise ConfigError(
                    f"a parameter of shape {tuple(pattern.shape)} is not part of the model; "
                    "was it replaced or moved to another model since it was taken?"
                )
            chosen.add(pattern)
        else:
            module = _require_member(pattern, members)
            if not (weights := _weights(module)):
                raise ConfigError(
                    f"a {type(module).__name__} has no weight of its own; name its children"
                )
            chosen.update(weights)
    return [pair for pair in named_parameters_clean(model) if pair[1] in chosen]


@checked
def select_modules(
    model: nn.Module, patterns: Pattern | Sequence[Pattern]
) -> list[tuple[str, nn.Module]]:
    """The modules that ``patterns`` name, in the order of the model, each once.

    Args:
        model: Any module, wrapped or not.
        patterns: As in :func:`select_parameters`. A string matches module names, a parameter
            means the modules that own it.

    Returns:
        Pairs of clean qualified name and module, without wrappers.

    Raises:
        ConfigError: A pattern matches nothing, or an object is not part of the model.
    """
    modules = list(named_modules_clean(model, remove_duplicate=False))
    members = {module for _, module in modules}
    owners: dict[nn.Parameter, set[nn.Module]] = defaultdict(set)
    for module in members:
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[parameter].add(module)
    chosen: set[nn.Module] = set()
    for pattern in _as_list(patterns):
        if isinstance(pattern, str):
            found = {
                module
                for name, module in modules
                if (name or len(modules) == 1) and _matches(name, pattern)
            }
            if not found:
                raise _nothing(pattern, [name for name, _ in modules[1:]], "module")
        elif isinstance(pattern, nn.Parameter):
            found = owners.get(pattern, set())
            if not found:
                raise ConfigError(
                    f"no module of the model owns the parameter of shape {tuple(pattern.shape)}"
                )
        else:
            found = {_require_member(pattern, members)}
        chosen |= found
    return [pair for pair in named_modules_clean(model) if pair[1] in chosen]


def _require_member(module: nn.Module, members: Set[nn.Module]) -> nn.Module:
    inner = unwrap(module)
    if inner not in members:
        raise ConfigError(
            f"a {type(inner).__name__} is not part of the model; "
            "was it replaced since it was taken?"
        )
    return inner
