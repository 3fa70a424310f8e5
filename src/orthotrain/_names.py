"""What to say where a name does not exist: the near one, or the one an acronym means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import NoReturn

#: What the papers call it -> what it is called here.
_ACRONYMS = {
    "NOG": "orthotrain.NearestOrthogonalGradient",
    "OLR": "orthotrain.OptimalLearningRate",
    "OIALR": "orthotrain.AdaptiveLowRank",
    "OL": "orthotrain.OrthogonalPenalty",
    "SN": "orthotrain.SpectralNormalization",
    "DBN": "orthotrain.layers.DecorrelatedBatchNorm2d",
    "GCP": "orthotrain.layers.GlobalCovariancePool",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean NEAR? "``; nothing where no known name is near."""
    from difflib import get_close_matches  # only for those who err

    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def missing_name(module: str) -> Callable[[str], NoReturn]:
    """A ``__getattr__`` for a module that has all its public names already."""
    return partial(raise_missing, module)


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A ``__getattr__`` for a package that loads each public name on first use.

    Args:
        package: Name of the package.
        homes: Public name -> the module of the package that defines it.
    """

    def load(name: str) -> object:
        if name not in homes:
            raise_missing(package, name)
        value: object = getattr(import_module(f"{package}.{homes[name]}"), name)
        # Found without this function from now on.
        setattr(sys.modules[package], name, value)
        return value

    # Completion and inspection find the names that are not loaded, too.
    module = sys.modules[package]
    module.__dir__ = lambda: sorted({*vars(module), *homes})  # type: ignore[method-assign]
    return load


def raise_missing(module: str, name: str) -> NoReturn:
    """Raise AttributeError with the public name of ``module`` that is nearest to ``name``."""
    from difflib import get_close_matches  # only for those who err

    sentence = f"module {module!r} has no attribute {name!r}"
    public = {known.lower(): known for known in sys.modules[module].__all__}
    near = get_close_matches(name.lower(), public, n=1, cutoff=0.7)
    if name.upper() in _ACRONYMS:
        sentence += f"; did you mean {_ACRONYMS[name.upper()]}?"
    elif near:
        sentence += f"; did you mean {module}.{public[near[0]]}?"
    raise AttributeError(sentence)
