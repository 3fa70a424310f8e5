"""Truncate a trained model at once: look, decide and change, with no training around it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from orthotrain._checks import require_share
from orthotrain._doors import checked
from orthotrain._sharded import require_whole
from orthotrain.errors import ConfigError
from orthotrain.layers import Bases
from orthotrain.lowrank.change import cut_site_, undo_of
from orthotrain.lowrank.compression_report import Compression, cut_and_report
from orthotrain.lowrank.cut import (
    KnownWeights,
    chosen_layers,
    known_weights,
    require_data_for,
)
from orthotrain.lowrank.look import Decomposition
from orthotrain.lowrank.measure import LossFunction
from orthotrain.lowrank.no_form import Kind
from orthotrain.lowrank.output_error import model_error, seen_on
from orthotrain.lowrank.pretrained import guard
from orthotrain.lowrank.rank_rule import RankRule
from orthotrain.lowrank.rules import chosen_rule
from orthotrain.lowrank.settings import MAX_ASPECT
from orthotrain.lowrank.sites import Site, find_sites, require_sites
from orthotrain.methods.select import unwrap


@checked
def compress(  # noqa: PLR0913  # a rule and its short forms, what is cut, what it is measured on
    model: nn.Module,
    *,
    rank: RankRule | None = None,
    rank_rtol: float | None = None,
    energy: float | None = None,
    stored_budget: float | None = None,
    data: Iterable[Any] | None = None,
    loss: LossFunction | None = None,
    held_out: Iterable[Any] | None = None,
    max_output_error: float | None = None,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    also: Collection[Kind] = (),
    max_aspect: float = MAX_ASPECT,
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
        held_out: Batches that the cut does not see, in the form of ``data``. The report tells
            the whole model's output error on them, and its loss before and after. The outputs of
            all of them are kept until the end.
        max_output_error: The largest relative output error that is allowed, in ``(0, 1]``: of
            each layer on ``data``, and of the whole model on ``held_out``. Layers keep the rank
            that they need for it. One that saw no data stays as it is.
        only: ``fnmatch`` patterns on qualified module names to cut; all others stay as they are.
        skip: Patterns on modules that stay as they are.
        also: Kinds of layers that are cut on request: ``"lstm"``, ``"gru"``, ``"rnn"`` (cells,
            too), ``"embedding"`` and ``"transposed"``, which is transposed convolutions. They are
            taken whatever their shape.
        max_aspect: A weight whose larger side is this many times the smaller, or more, stays as
            it is; ``math.inf`` takes every shape.
        only_if_cheaper: Leave a layer as it is where its factors hold no fewer numbers.
        bases: The form a dense layer takes: ``"trained"`` is two factors, ``"frozen"`` a core
            between frozen bases, which holds more numbers at the same rank.

    Returns:
        The same model with low-rank layers, and a :class:`Compression` as ``.compression``.

    Raises:
        ConfigError: No rank rule or two of them, a value outside its range, a pattern that
            matches nothing, a budget that cannot be met, no layer that can be converted, a loss
            without data, no batch, a loss without a backward pass, or data for a model on
            several devices; ranks within ``max_output_error`` that exceed the budget, or a model
            that exceeds it on ``held_out``; or a model that is sharded over processes. Nothing is
            changed then.
        NonFiniteError: A weight, an input, a gradient or a loss holds NaN or infinity; the
            message names the layer. Nothing is changed then.

    Source:
        The metric of inputs is that of SVD-LLM (Wang et al., arXiv:2403.07378), that of the loss
        K-FAC's (Martens and Grosse, arXiv:1503.05671). ``docs/compress.md`` compares others.
    """
    require_whole("compress", model)
    rule = chosen_rule(rank, rank_rtol=rank_rtol, energy=energy, stored_budget=stored_budget)
    selection = chosen_layers("compress", only=only, skip=skip, also=also, max_aspect=max_aspect)
    require_data_for("compress", data, loss)
    _require_bound(max_output_error, data)
    inner = unwrap(model)
    sites, refusals = find_sites(inner, selection)
    require_sites(sites, refusals, "compress")
    known = known_weights(
        inner, sites, refusals, rules=[rule], data=data, loss=loss, only_if_cheaper=only_if_cheaper,
        bases=bases, what="compress",
    )  # fmt: skip
    ranks = _ranks_within(known, sites, rule, max_output_error)
    batches = [] if held_out is None else list(held_out)
    if held_out is not None and not batches:
        raise ConfigError("compress needs at least one batch in held_out, got an empty one")
    before = seen_on(inner, batches, loss) if batches else None

    def cut(site: Site, kept: Decomposition) -> None:
        cut_site_(site, *kept, bases=bases)

    undo = undo_of(sites) if batches and max_output_error is not None else None
    report = cut_and_report(known, sites, ranks, cut=cut, refusals=refusals)
    if before is not None:
        after = seen_on(inner, batches, loss)
        report = replace(
            report, output_error=model_error(before, after),
            loss_before=before.loss, loss_after=after.loss,
        )  # fmt: skip
    if undo is not None and max_output_error is not None:
        _require_within(report, max_output_error, undo)
    guard(inner)
    model.__dict__["compression"] = report
    return model


def _require_bound(bound: float | None, data: object) -> None:
    if bound is None:
        return
    require_share("compress", "max_output_error", bound, one=True)
    if data is None:
        raise ConfigError(
            f"compress needs data to measure output errors on, got max_output_error={bound:g} "
            "without data"
        )


def _ranks_within(
    known: KnownWeights, sites: Sequence[Site], rule: RankRule, bound: float | None
) -> list[int | None]:
    """The rank of each site by the rule, and no lower than the bound on its error allows."""
    if bound is None:
        return known.ranks(sites, rule)
    least = known.least_ranks(sites, bound)
    try:
        return known.ranks(sites, rule, at_least=least)
    except ConfigError as error:
        by_rule = zip(sites, least, known.ranks(sites, rule), strict=True)
        named = ", ".join(
            f"{site.name} needs rank {needed}, the rule leaves {left}"
            for site, needed, left in by_rule
            if left is not None and left < needed
        )
        raise ConfigError(
            f"compress cannot keep max_output_error={bound:g} and the size: {named}. {error}, or "
            "raise max_output_error"
        ) from error


def _require_within(report: Compression, bound: float, undo: Callable[[], None]) -> None:
    """Take the cut back where the whole model's error is beyond the bound, or not known."""
    error = report.output_error
    if error is not None and error <= bound:
        return
    undo()
    if error is None:
        raise ConfigError(
            "compress needs outputs to compare for max_output_error, got none or others after the "
            "cut; let loss call the model that it is given, or leave held_out out"
        )
    layers = sorted(report.layers, key=lambda layer: -(layer.output_error or 0.0))
    worst = ", ".join(f"{each.name} {each.output_error:.3g}" for each in layers[:4] if each.rank)
    raise ConfigError(
        f"compress was to keep the model's output error within max_output_error={bound:g}, got "
        f"{error:.3g} on held_out at {report.stored:,} of {report.stored_before:,} numbers. Most "
        f"of its layers: {worst}. Nothing is changed; allow a larger size or error"
    )
