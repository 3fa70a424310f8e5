"""Truncate a trained model at once: look, decide and change, with no training around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from orthotrain._doors import checked
from orthotrain._sharded import require_whole
from orthotrain.layers import Bases
from orthotrain.lowrank.change import cut_site_
from orthotrain.lowrank.cut import (
    KnownWeights,
    chosen_layers,
    known_weights,
    require_data_for,
    stored_in,
)
from orthotrain.lowrank.measure import LossFunction
from orthotrain.lowrank.metric import Importance
from orthotrain.lowrank.rank_rule import RankRule
from orthotrain.lowrank.rules import chosen_rule
from orthotrain.lowrank.sites import Site, find_sites, require_sites
from orthotrain.methods.select import unwrap


@dataclass(frozen=True)
class CompressedLayer:
    """What ``compress`` did to one weight.

    Attributes:
        name: Qualified name of the module.
        shape: Shape of the dense weight.
        rank: Its rank now; None while it is dense.
        stored_before: Numbers that held it before.
        stored: Numbers that hold it now.
        loss_share: Its share of what all cuts together lose, by the estimate that chose the
            ranks; 0 where it was not cut.
        note: Why it was cut by its weight alone, where that is so.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    stored_before: int
    stored: int
    loss_share: float
    note: str = ""


@dataclass(frozen=True)
class Compression:
    """What ``compress`` did; on the model as ``.compression``. ``print`` shows a table.

    Attributes:
        layers: One row per weight that could be cut, in model order.
        importance: What ranks were chosen by: ``"loss"``, ``"input"`` or ``"weight"``.
        stored_before: Numbers that the whole model held.
        stored: Numbers that it holds.
    """

    layers: tuple[CompressedLayer, ...]
    importance: Importance
    stored_before: int
    stored: int

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"{layer.name:{width}}  {'x'.join(map(str, layer.shape)):>12}  "
            f"{'dense' if layer.rank is None else f'rank {layer.rank}':>9}  "
            f"{layer.stored_before:>12,} to {layer.stored:>12,}  "
            f"{100 * layer.loss_share:5.1f} % of what was lost  {layer.note}".rstrip()
            for layer in self.layers
        ]
        percent = 100 * self.stored / self.stored_before
        total = f"stored {self.stored:,} of {self.stored_before:,} ({percent:.1f} %)"
        return "\n".join([*lines, f"{total}, ranks by {self.importance}"])


@checked
def compress(  # noqa: PLR0913  # a rule and its three short forms
    model: nn.Module,
    *,
    rank: RankRule | None = None,
    rank_rtol: float | None = None,
    energy: float | None = None,
    stored_budget: float | None = None,
    data: Iterable[Any] | None = None,
    loss: LossFunction | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    only_if_cheaper: bool = True,
    bases: Bases = "trained",
) -> nn.Module:
    """Truncate a trained model's layers to low rank at once, in place.

    With ``data``, singular values are those in the metric of each layer's inputs: what is cut
    changes the outputs least. With ``loss``, too, they are in the metric of the loss. Then
    ``StoredBudget`` sets one threshold on the estimated loss over all layers. A layer that saw
    no data, or whose gradient is zero, is cut by its weight; its share of energy counts like
    that of the mean layer, and the report names it.

    Ranks of convolutions are rounded up to a multiple of 16, as in training.

    Args:
        model: The trained model, dense or low-rank.
        rank: The rank rule: ``Relative(0.1)``, ``Energy(0.9)``, ``StoredBudget(0.5)`` or a
            rule of your own.
        rank_rtol: Short form of ``rank=Relative(...)``.
        energy: Short form of ``rank=Energy(...)``.
        stored_budget: Short form of ``rank=StoredBudget(...)``.
        data: Batches like those of training, on the model's device; 8 to 50 are enough. All are
            read, once, in evaluation mode. Without ``loss`` the model is called with each: the
            entries of a mapping by name, the first of a tuple or list, or the batch itself.
        loss: ``loss(model, batch)``, one number with a backward pass: the training loss, a mean
            over the batch. The model it is given is the inner one, without wrappers, so several
            processes cut alike where they give the same batches.
        only: ``fnmatch`` patterns on qualified module names to cut; all others stay as they are.
        skip: Patterns on modules that stay as they are.
        only_if_cheaper: Leave a layer as it is where its factors hold no fewer numbers.
        bases: The form a dense layer takes: ``"trained"`` is two factors, ``"frozen"`` a core
            between frozen bases, which holds more numbers at the same rank.

    Returns:
        The same model with low-rank layers, and a :class:`Compression` as ``.compression``.

    Raises:
        ConfigError: No rank rule or two of them, a value outside its range, a pattern that
            matches nothing, a budget that cannot be met, no layer that can be converted, a loss
            without data, no batch, a loss without a backward pass, data for a model on several
            devices, or a model that is sharded over processes. Nothing is changed then.
        NonFiniteError: A weight, an input, a gradient or a loss holds NaN or infinity; the
            message names the layer. Nothing is changed then.
    """
    require_whole("compress", model)
    rule = chosen_rule(rank, rank_rtol=rank_rtol, energy=energy, stored_budget=stored_budget)
    selection = chosen_layers("compress", only=only, skip=skip)
    require_data_for("compress", data, loss)
    inner = unwrap(model)
    sites, refusals = find_sites(inner, selection)
    require_sites(sites, refusals, "compress")
    known = known_weights(
        inner, sites, rules=[rule], data=data, loss=loss, only_if_cheaper=only_if_cheaper,
        bases=bases, what="compress",
    )  # fmt: skip
    ranks, before = known.ranks(sites, rule), [stored_in(site) for site in sites]
    for site, k in zip(sites, ranks, strict=True):
        if k is not None:
            cut_site_(site, *known.factors(site, k), bases=bases)
    model.__dict__["compression"] = compression_of(known, sites, ranks, stored_before=before)
    return model


def compression_of(
    known: KnownWeights,
    sites: Sequence[Site],
    ranks: Sequence[int | None],
    *,
    stored_before: Sequence[int],
) -> Compression:
    """The report on a cut that was made.

    Args:
        known: What it was decided on.
        sites: The weights, after it.
        ranks: What they were cut to; None where they stayed as they were.
        stored_before: Numbers that held each of them before.
    """
    lost, others = known.lost(ranks), known.other_numbers
    total = sum(lost) or 1.0
    layers = tuple(
        CompressedLayer(
            name=site.name,
            shape=site.layout.shape,
            rank=site.rank if site.factored else None,
            stored_before=was,
            stored=stored_in(site),
            loss_share=each / total,
            note=known.note(site),
        )
        for site, was, each in zip(sites, stored_before, lost, strict=True)
    )
    stored = others + sum(layer.stored for layer in layers)
    return Compression(layers, known.importance, others + sum(stored_before), stored)
