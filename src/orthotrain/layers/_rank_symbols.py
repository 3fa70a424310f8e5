"""Ranks as symbols of compiled graphs, so that a cut needs no new one; how many there are.

``torch.compile`` takes the shapes of parameters and buffers as constants, whatever is marked on
the tensors, so it would compile a model anew at each cut. It makes an exception for those whose
names are listed in ``torch.compiler.config.dynamic_sources``. Of their sizes those that a layer
compares with its own, such as the width of its input, become constants again; the rank does not.
"""

from __future__ import annotations

import torch
import torch.compiler.config as settings_of_compiler

# As ``orthotrain.layers._factor_names`` makes them. No comma and no space: the list has commas.
_FACTORS = (
    r".*_(parameters|buffers)\['"
    r"((in|q|k|v)_proj_|(ih|hh|hr)_(l[0-9]+_(reverse_)?)?)?(pair|core|u|vh)'\]$"
)


def let_ranks_vary() -> None:
    """Have torch compile for every rank what it compiles from now on in this process.

    Only sizes of the tensors that hold a weight in factors are concerned, of whatever model; no
    other entry of the list is touched.
    """
    listed = settings_of_compiler.dynamic_sources
    if _FACTORS not in listed.split(","):
        settings_of_compiler.dynamic_sources = f"{listed},{_FACTORS}".removeprefix(",")


_versions: dict[int, int] = {}


def count_version() -> bool:
    """Note that torch compiles a function with a low-rank layer once more.

    torch calls it while it compiles, and puts what it returns into the graph as a constant.
    """
    compiled = torch._guards.CompileContext.current_compile_id()
    if compiled is not None and compiled.frame_id is not None:
        _versions[compiled.frame_id] = (compiled.frame_compile_id or 0) + 1
    return True


# What ``torch._dynamo.assume_constant_result`` does; importing that takes as long as torch itself.
count_version._dynamo_marked_constant = True  # type: ignore[attr-defined]


def versions() -> dict[int, int]:
    """How often torch compiled each function that has low-rank layers, by its own number of it."""
    return dict(_versions)


def tell_sizes(*pairs: tuple[int, int]) -> None:
    """Tell torch, while it compiles, which sizes are the same, so that they are one symbol.

    It learns some from the products that are traced, but not that a core is square.
    """
    if torch.compiler.is_compiling():
        for one, other in pairs:
            torch._check(one == other)  # type: ignore[no-untyped-call]
