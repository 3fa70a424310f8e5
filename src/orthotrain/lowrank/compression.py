"""Truncate a trained model at once: look, decide and change, with no training around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.layers import Bases, stored_numbers
from orthotrain.linalg import MetricSVD, truncated
from orthotrain.lowrank.change import cut_site_
from orthotrain.lowrank.decide import decided_ranks
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import candidate_of, decomposed, decomposed_in, spectrum, weighed
from orthotrain.lowrank.measure import LossFunction, measured_metrics
from orthotrain.lowrank.metric import Importance
from orthotrain.lowrank.rank_rule import Candidate, Limits, RankRule
from orthotrain.lowrank.rules import chosen_rule
from orthotrain.lowrank.sites import Selection, Site, find_sites, other_numbers, require_sites
from orthotrain.methods.select import unwrap

_OPEN = Limits(max_drop=1.0, min_rank_fraction=0.0)


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
            f"{100 * layer.loss_share:5.1f} % of the loss  {layer.note}".rstrip()
            for layer in self.layers
        ]
        percent = 100 * self.stored / self.stored_before
        total = f"stored {self.stored:,} of {self.stored_before:,} ({percent:.1f} %)"
        return "\n".join([*lines, f"{total}, ranks by {self.importance}"])


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

    Returns:
        The same model with low-rank layers, and a :class:`Compression` as ``.compression``.

    Raises:
        ConfigError: No rank rule or two of them, a value outside its range, a pattern that
            matches nothing, a budget that cannot be met, no layer that can be converted, a loss
            without data, no batch, a loss without a backward pass, or data for a model on
            several devices. Nothing is changed then.
        NonFiniteError: A weight, an input, a gradient or a loss holds NaN or infinity; the
            message names the layer. Nothing is changed then.
    """
    rule = chosen_rule(rank, rank_rtol=rank_rtol, energy=energy, stored_budget=stored_budget)
    for name, patterns in (("skip", skip), ("only", only)):
        if isinstance(patterns, str):
            raise ConfigError(
                f"compress needs {name} to be a sequence of patterns, got {patterns!r}"
            )
    if loss is not None and data is None:
        raise ConfigError("compress needs data to measure the loss on, got loss without data")
    inner = unwrap(model)
    sites, refusals = find_sites(inner, Selection(skip=tuple(skip), only=tuple(only)))
    require_sites(sites, refusals, "compress")
    others = other_numbers(inner, sites)
    new = LayerHistory()  # nothing was cut or planned before
    settings = _Settings("weight", only_if_cheaper)
    candidates = [
        candidate_of(s, spectrum(s), new, within_reach=True, settings=settings) for s in sites
    ]
    # Before the data are read, too: a budget out of reach is told at once.
    ranks = decided_ranks(candidates, rule=rule, limits=_OPEN, other_numbers=others)
    importance: Importance = "weight"
    views: dict[str, MetricSVD] = {}
    if data is not None:
        importance = "input" if loss is None else "loss"
        metrics = measured_metrics(inner, sites, data, loss)
        views = {s.name: decomposed_in(s, m) for s in sites if (m := metrics[s.name]) is not None}
        candidates = [
            replace(each, spectrum=views[each.name].s.reshape(each.blocks, -1))
            if each.name in views
            else each
            for each in candidates
        ]
        if importance == "loss":  # errors of outputs of different layers do not compare
            candidates = weighed(candidates, views)
        ranks = decided_ranks(candidates, rule=rule, limits=_OPEN, other_numbers=others)
    before = [_stored(site) for site in sites]
    lost = []
    for site, k, candidate in zip(sites, ranks, candidates, strict=True):
        pays = not only_if_cheaper or _stored(site, k) < _stored(site)
        lost.append(_lost(candidate, k) if pays else 0.0)
        if pays:
            _cut(site, views.get(site.name), k)
    notes = {
        site.name: "saw no data, or no gradient: cut by its share of energy"
        for site in sites
        if data is not None and site.name not in views
    }
    total = sum(lost) or 1.0
    layers = tuple(
        CompressedLayer(
            name=site.name,
            shape=site.layout.shape,
            rank=site.rank if site.factored else None,
            stored_before=was,
            stored=_stored(site),
            loss_share=each / total,
            note=notes.get(site.name, ""),
        )
        for site, was, each in zip(sites, before, lost, strict=True)
    )
    stored = others + sum(layer.stored for layer in layers)
    model.__dict__["compression"] = Compression(layers, importance, others + sum(before), stored)
    return model


@dataclass(frozen=True)
class _Settings:
    """How sites are seen by ``compress``."""

    importance: Importance
    only_if_cheaper: bool
    bases: Bases = "frozen"


def _lost(candidate: Candidate, rank: int) -> float:
    """What a cut to a rank loses, by the estimate that the rule goes by."""
    energy = candidate.spectrum.double().square()
    whole = float(energy.sum())
    return candidate.weight * float(energy[:, rank:].sum()) / whole if whole else 0.0


def _cut(site: Site, view: MetricSVD | None, rank: int) -> None:
    if view is None:
        p, s, qh = decomposed(site)
        cut_site_(site, p[..., :rank], s[..., :rank], qh[..., :rank, :])
    else:
        cut_site_(site, *truncated(view, rank))


def _stored(site: Site, rank: int | None = None) -> int:
    """Numbers that hold a site's weight, now or at a rank."""
    if rank is None and not site.factored:
        return site.dense_numbers
    layout = site.layout
    k = site.rank if rank is None else rank
    return layout.blocks * stored_numbers(layout.m, layout.n, k, bases=site.bases)
