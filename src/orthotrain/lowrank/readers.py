"""Which layers' weights other code reads by name, from the source of that code.

``self.proj(x)`` works whatever the layer is; ``F.linear(x, self.proj.weight)`` needs the values.
The source of every class in a model is read, from ``forward`` on and into what it calls on
``self`` and within its file. What is not followed: names made at run time (``getattr``), layers
taken in other ways than an index or a plain loop, methods that ``forward`` does not call, and other
files. Such code gets the NaN that a pair has in the place of its weight, never a wrong number.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import FunctionType
from typing import NamedTuple

from torch import nn

from orthotrain.methods.select import inner_name

_OF_A_TENSOR = frozenset({"dtype", "device", "is_cuda", "is_meta"})
#: Stands for ``[...]`` and for one of those that a loop goes over.
_ANY = "*"


class _Read(NamedTuple):
    """``self.a.b.weight`` read somewhere: names from ``self`` to the layer, and the attribute.

    Where it starts at something else than ``self``, ``names`` begins with an empty one.
    """

    names: tuple[str, ...]
    attribute: str


def readers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Those of some layers whose weight or bias is read as a value, with what reads it.

    Args:
        model: What holds the layers.
        layers: By name as in ``named_modules``.

    Returns:
        By name of the layer: the class and the attribute, ``"MambaMixer reads .weight"``.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        for read in _reads_of(type(module)):  # type: ignore[arg-type]  # a class is hashable
            for layer in _meant(read, name, module, layers):
                found.setdefault(layer, f"{type(module).__name__} reads .{read.attribute}")
    return {name: found[name] for name in layers if name in found}


def _meant(
    read: _Read, name: str, module: nn.Module, layers: Mapping[str, nn.Module]
) -> Iterator[str]:
    """Names of the layers that a read may mean."""
    if read.names[0] and _ANY not in read.names:
        target: nn.Module | None = module
        for part in read.names:
            while target is not None and part not in target._modules:
                inner = inner_name(target)
                target = None if inner is None else target._modules[inner]
            target = None if target is None else target._modules[part]
        yield from (each for each, layer in layers.items() if layer is target)
        return
    *_, before, last = ("", *read.names)
    for each in layers:
        *_, parent, own = ("", *each.split("."))
        if own == last or (last == _ANY and parent == before and own.isdigit()):
            yield each


@lru_cache(maxsize=512)
def _reads_of(cls: type[nn.Module]) -> tuple[_Read, ...]:
    """What the code of a class reads of other modules, beyond calling them."""
    if cls.__module__.startswith(("torch.nn.", "orthotrain.")):
        return ()
    reads: dict[_Read, None] = {}
    waiting = [(function, True) for function in _functions(cls, "forward")]
    known: set[FunctionType] = set()
    while waiting:
        function, is_method = waiting.pop()
        if function in known:
            continue
        known.add(function)
        tree = _tree(function)
        if tree is None:  # typed into a shell: by the names that occur
            names = function.__code__.co_names
            if "weight" in names:
                reads |= dict.fromkeys(_Read(("", name), "weight") for name in names)
            continue
        code = _Code(tree, is_method=is_method)
        reads |= dict.fromkeys(code.reads())
        waiting += [(each, True) for name in code.on_self for each in _functions(cls, name)]
        waiting += [
            (each, False)
            for name in code.names
            if isinstance(each := function.__globals__.get(name), FunctionType)
            and each.__module__ == function.__module__
        ]
    return tuple(reads)


def _functions(cls: type[nn.Module], name: str) -> Iterator[FunctionType]:
    """The functions of a name in a class and those it derives from, up to torch's own."""
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn."):
            return
        held = vars(base).get(name)
        held = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
        held = inspect.unwrap(held) if callable(held) else held
        if isinstance(held, FunctionType):
            yield held


def _tree(function: FunctionType) -> ast.FunctionDef | None:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError):
        return None
    return next((each for each in body if isinstance(each, ast.FunctionDef)), None)


class _Code:
    """One function: what it reads of what, and what else it calls."""

    def __init__(self, tree: ast.FunctionDef, *, is_method: bool) -> None:
        self._nodes = [*ast.walk(tree)]
        arguments = [*tree.args.posonlyargs, *tree.args.args]
        self._self = arguments[0].arg if is_method and arguments else ""
        self.names = {each.id for each in self._nodes if isinstance(each, ast.Name)}
        self._assigned: dict[str, ast.expr] = {}
        self._looped: dict[str, ast.expr] = {}
        for each in self._nodes:
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                self._assigned.setdefault(each.targets[0].id, each.value)
            if isinstance(each, ast.For) and isinstance(each.target, ast.Name):
                self._looped.setdefault(each.target.id, each.iter)
        self.on_self = {
            each.attr
            for each in self._nodes
            if isinstance(each, ast.Attribute) and self._is_self(each.value)
        }

    def reads(self) -> Iterator[_Read]:
        """Weights that are used for more than dtype, device or presence, and all biases."""
        harmless = {id(each) for node in self._nodes for each in _harmless(node)}
        for node in self._nodes:
            match node:
                case ast.Attribute(attr="weight" | "bias" as attribute, ctx=ast.Load()):
                    names = self._names(node.value)
                    if names and (attribute == "bias" or id(node) not in harmless):
                        yield _Read(names, attribute)

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._self

    def _names(self, node: ast.expr, depth: int = 8) -> tuple[str, ...]:
        """Names from ``self``, or from elsewhere with an empty one in front; none if unknown."""
        if isinstance(node, ast.Attribute):
            return (*self._names(node.value, depth), node.attr)
        if isinstance(node, ast.Subscript):
            return (*self._names(node.value, depth), _ANY)
        if self._is_self(node):
            return ()
        if isinstance(node, ast.Name) and depth:
            if node.id in self._assigned:
                return self._names(self._assigned[node.id], depth - 1)
            if node.id in self._looped:
                return (*self._names(self._looped[node.id], depth - 1), _ANY)
        return ("",)


def _harmless(node: ast.AST) -> Iterator[ast.expr]:
    """What ``node`` reads in a way that the NaN of a pair answers as well."""
    match node:
        case ast.Attribute(attr=name, value=inner) if name in _OF_A_TENSOR:
            yield inner
        case ast.Compare(left=inner, ops=[ast.Is() | ast.IsNot()]):
            yield inner
        case ast.Call(func=ast.Name(id="isinstance"), args=[inner, *_]):
            yield inner
