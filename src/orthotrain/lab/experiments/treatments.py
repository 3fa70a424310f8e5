"""What is done to one weight, or for it: each treatment once, for every family that tries it.

A new treatment is one more row. It becomes a variant of each family that its row names, and is
attached in the order of the rows. This module does not import torch: a row makes its method when
it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from orthotrain.lab.run.config import Variant

if TYPE_CHECKING:
    from orthotrain.methods import Method

#: Where a weight stands: before a spectral layer, or at the latent of a generator.
SPECTRAL, LATENT = "spectral", "latent"


@dataclass(frozen=True)
class Settings:
    """What the methods take besides the weight; a family sets what it has options for.

    Attributes:
        penalty: Weight of a penalty in the loss.
        nog_scale: Norm of the nearest orthogonal gradient.
        nog_when: Before momentum, or on the executed update.
        olr_target: What the optimal learning rate minimises.
        olr_floor: Smallest learning rate as a share of the optimizer's.
        record_every: Optimizer steps between records.
    """

    penalty: float = 1e-2
    nog_scale: Any = "none"
    nog_when: Any = "gradient"
    olr_target: Any = "vector"
    olr_floor: float = 0.0
    record_every: int = 10


@dataclass(frozen=True)
class Treatment:
    """One thing to try.

    Attributes:
        name: In names of variants, and in run.json.
        title: In titles of variants.
        note: A sentence's worth; ``{weight}`` stands for the family's words for the weight.
        families: Which families try it alone.
        make: The method for the weights of a pattern; None where the family does it otherwise,
            in the network or in the loss.
    """

    name: str
    title: str
    note: str
    families: tuple[str, ...]
    make: Callable[[str, Settings], Method] | None = None


@dataclass(frozen=True)
class TreatedVariant(Variant):
    """A way to train with treatments.

    Attributes:
        treatments: What is done; empty for the baseline.
    """

    treatments: tuple[str, ...] = ()

    def described(self) -> dict[str, object]:
        """What run.json says about it."""
        return {**super().described(), **self.settings()}

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {"treatments": list(self.treatments)}


def _methods() -> Any:
    """The package of methods, loaded when a method is made."""
    return import_module("orthotrain.methods")


_EACH: Final = (SPECTRAL, LATENT)

# In the published order: the penalty is part of the gradient that NOG sees, OLR comes last.
OL: Final = Treatment(
    "ol",
    "OL",
    "a penalty |W W^T - I|_F^2 on {weight}",
    _EACH,
    lambda weight, s: _methods().OrthogonalPenalty(weight, weight=s.penalty),
)
NOG: Final = Treatment(
    "nog",
    "NOG",
    "the gradient of {weight} replaced by the nearest orthogonal one",
    _EACH,
    lambda weight, s: _methods().NearestOrthogonalGradient(
        weight, scale=s.nog_scale, when=s.nog_when, record_every=s.record_every
    ),
)
NOG_UPDATE: Final = Treatment(
    "nog-update",
    "NOG on the update",
    "the executed step of {weight} orthogonalised",
    (LATENT,),
    lambda weight, s: _methods().NearestOrthogonalGradient(
        weight, when="update", record_every=s.record_every
    ),
)
OLR: Final = Treatment(
    "olr",
    "OLR",
    "the optimal learning rate for {weight}, where it is smaller",
    _EACH,
    lambda weight, s: _methods().OptimalLearningRate(
        weight, target=s.olr_target, floor=s.olr_floor, record_every=s.record_every
    ),
)
SN: Final = Treatment(
    "sn",
    "SN",
    "{weight} divided by its largest singular value after each step",
    (SPECTRAL,),
    lambda weight, s: _methods().SpectralNormalization(weight),
)
OW: Final = Treatment("ow", "OW", "{weight} kept orthogonal by its parametrisation", (SPECTRAL,))
# The gradient of the weight has a norm of its own under NOG, so the weight grows at another
# pace; with its norm held fixed, what is left is the direction. A control, never alone.
FIXED: Final = Treatment(
    "fixed",
    "norm fixed",
    "control: after each step {weight} gets back the norm it began with",
    (),
    lambda weight, s: _methods().Retraction(weight, onto="norm"),
)
RETRACTION: Final = Treatment(
    "retraction",
    "retraction",
    "{weight} made orthogonal again after each step",
    (LATENT,),
    lambda weight, s: _methods().Retraction(weight, onto="polar"),
)
HESSIAN: Final = Treatment(
    "hessian",
    "Hessian penalty",
    "a penalty on the mixed second differences of the generator",
    (LATENT,),
)
OROJAR: Final = Treatment(
    "orojar", "OroJaR", "a penalty on products of different columns of the Jacobian", (LATENT,)
)
VP: Final = Treatment("vp", "VP loss", "a network that must tell which coordinate moved", (LATENT,))

TREATMENTS: list[Treatment] = [
    *(OL, NOG, NOG_UPDATE, OLR, SN, OW, FIXED, RETRACTION),
    *(HESSIAN, OROJAR, VP),
]


def alone(family: str) -> list[tuple[Treatment, ...]]:
    """Every treatment that a family tries, each by itself."""
    return [(row,) for row in TREATMENTS if family in row.families]


def name_of(chosen: Iterable[Treatment]) -> str:
    """The name of a variant with these treatments."""
    return "-".join(row.name for row in chosen)


def note_of(chosen: Iterable[Treatment], *, weight: str) -> str:
    """The sentence of a variant with these treatments."""
    return "; ".join(row.note.format(weight=weight) for row in chosen)


def methods_of(names: Sequence[str], *, weight: str, settings: Settings) -> list[Method]:
    """The methods of the treatments with these names, in the order of the rows."""
    rows = [row for row in TREATMENTS if row.name in names]
    return [row.make(weight, settings) for row in rows if row.make is not None]
