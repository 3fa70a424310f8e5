"""A plain state dict made smaller: ranks by a rule, two factors or dense weights, one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.lowrank.compression_report import CompressedLayer, Compression
from orthotrain.lowrank.no_form import Kind
from orthotrain.lowrank.rank_rule import RankRule
from orthotrain.lowrank.rules import chosen_rule
from orthotrain.lowrank.settings import MAX_ASPECT
from orthotrain.lowrank.state_dicts.choose import Chosen, choose
from orthotrain.lowrank.state_dicts.read import StoredModel, stored_model
from orthotrain.lowrank.state_dicts.survey import (
    OnProgress,
    kept_energy,
    ranks_by,
    spectra_of,
)
from orthotrain.lowrank.state_dicts.weights import VECTOR, StoredWeight
from orthotrain.lowrank.storage import StoredLayout, distinct, factored_metadata, write_saved

#: What is written: two factors of each weight that is cut, or dense weights of low rank.
StateForm = Literal["factors", "dense"]


@dataclass(frozen=True)
class CompressedState:
    """A state dict made smaller.

    Attributes:
        tensors: By name, on the CPU; names of one tied weight share it.
        metadata: What the file says beside them: ranks, and how weights were read.
        report: One row per weight that could be cut, and why others stay. ``print`` shows a table.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    report: Compression

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, at once.

        Two factors are loaded by ``orthotrain.load``, dense weights by every program.

        Raises:
            CheckpointError: It cannot be written; an earlier file is unchanged.
        """
        shared = "aliases" in self.metadata
        tensors = distinct(dict(self.tensors))[0] if shared else self.tensors
        write_saved(Path(path), tensors, self.metadata)


@checked
def compress_state(  # noqa: PLR0913  # a rule and its three short forms
    stored: StoredModel | Mapping[str, Tensor],
    *,
    rank: RankRule | None = None,
    rank_rtol: float | None = None,
    energy: float | None = None,
    stored_budget: float | None = None,
    form: StateForm = "factors",
    also: Sequence[Kind] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    max_aspect: float = MAX_ASPECT,
    only_if_cheaper: bool = True,
    on_progress: OnProgress | None = None,
) -> CompressedState:
    """Truncate the weights of a state dict to low rank, with no network around them.

    Singular values are those of the weights: no data are seen, so measure the model afterwards.
    ``compress`` with data cuts where outputs or the loss feel it least.

    Weights are decomposed in float64 and written in their own dtype. Tied weights, by memory or
    by equal numbers, stay tied. A convolution is read as one without groups.

    Args:
        stored: What :func:`read_any` read, or tensors by name; not changed.
        rank: The rank rule: ``Relative(0.1)``, ``Energy(0.9)``, ``StoredBudget(0.5)`` or a
            rule of your own.
        rank_rtol: Short form of ``rank=Relative(...)``.
        energy: Short form of ``rank=Energy(...)``.
        stored_budget: Short form of ``rank=StoredBudget(...)``.
        form: ``"factors"`` holds fewer numbers, under the names that ``save`` writes: the model
            loads them by ``load``. ``"dense"`` keeps every name and shape, and the size.
        also: Kinds of weights to cut that stay otherwise: ``"lstm"``, ``"gru"``, ``"rnn"``,
            ``"transposed"``, ``"embedding"``.
        only: ``fnmatch`` patterns on names of layers to cut; all others stay as they are.
        skip: Patterns on layers that stay as they are.
        max_aspect: A weight whose larger side is this many times the smaller, or more, stays dense.
        only_if_cheaper: Leave a weight as it is where its factors hold no fewer numbers.
        on_progress: Called before each weight.

    Raises:
        CheckpointError: There are no tensors.
        ConfigError: No rank rule or two, a value out of range, a pattern that matches nothing, a
            budget that cannot be met, no weight that can be cut, or ``"dense"`` of a file that is
            low-rank already.
        NonFiniteError: A weight holds NaN or infinity; the message names the tensor.
    """
    rule = chosen_rule(rank, rank_rtol=rank_rtol, energy=energy, stored_budget=stored_budget)
    model = stored_model(stored)
    chosen = choose(model, also=also, only=only, skip=skip, max_aspect=max_aspect)
    _require_form(chosen, form)
    spectra = spectra_of(chosen.weights, "compress", on_progress)
    candidates = [
        weight.candidate(s, only_if_cheaper=only_if_cheaper)
        for weight, s in zip(chosen.weights, spectra, strict=True)
    ]
    ranks = ranks_by(rule, chosen, candidates, only_if_cheaper=only_if_cheaper)
    tensors = dict(model.tensors)
    layouts = dict(model.layouts)
    for i, (weight, k) in enumerate(zip(chosen.weights, ranks, strict=True)):
        if on_progress is not None:
            on_progress(i, len(ranks), weight.name)
        if k is not None:
            _replace(tensors, layouts, weight, k, form)
    return CompressedState(
        tensors, _metadata(tensors, replace(model, layouts=layouts), chosen, ranks, form),
        _report(chosen, ranks, spectra),
    )  # fmt: skip


def _require_form(chosen: Chosen, form: StateForm) -> None:
    """Refuse weights that cannot be written in a form, and a file without any.

    Raises:
        ConfigError: See ``compress_state``.
    """
    if not chosen.weights:
        largest = sorted(chosen.left, key=lambda each: -each.numbers)[:4]
        named = "; ".join(f"{each.name}: {each.reason}" for each in largest)
        raise ConfigError(
            f"compress needs at least one weight that can be low-rank, got none ({named}); loosen "
            "only, skip and max_aspect, or name kinds that are cut on request in also"
        )
    for weight in chosen.weights:
        if form == "dense" and weight.form != "dense":
            raise ConfigError(
                f"compress cannot write {weight.name} dense: the file holds it in factors, and its "
                "shape is known to its model alone; load it there and call orthotrain.to_dense"
            )


def _replace(
    tensors: dict[str, Tensor],
    layouts: dict[str, StoredLayout],
    weight: StoredWeight,
    rank: int,
    form: StateForm,
) -> None:
    """Put a weight of a rank in the place of what held it, under all its names."""
    keys = (weight.key, *weight.aliases)
    if form == "dense":
        tensors |= dict.fromkeys(keys, weight.approximation(rank))
        return
    cut = weight.cut(rank)
    if weight.form == "core":
        stem = weight.key.removesuffix("core")
        for other in (key.removesuffix("core") for key in keys):
            tensors |= {other + name.removeprefix(stem): value for name, value in cut.items()}
        return
    for key in keys:
        del tensors[key]
    for key in weight.pair_keys():
        (tensors[key],) = cut.values()
        layouts[key] = StoredLayout.of(weight.layout)


def _metadata(
    tensors: dict[str, Tensor],
    model: StoredModel,
    chosen: Chosen,
    ranks: Sequence[int | None],
    form: StateForm,
) -> dict[str, str]:
    if form == "factors":
        once, aliases = distinct(tensors)
        kept = {name: layout for name, layout in model.layouts.items() if name in once}
        return factored_metadata(once, aliases, kept, model.two_layers)
    named = {
        key: k
        for weight, k in zip(chosen.weights, ranks, strict=True)
        for key in (weight.key, *weight.aliases)
        if k is not None
    }
    # Transformers reads no file of safetensors that does not name its format.
    return {"format": "pt", "orthotrain.ranks": json.dumps(named, sort_keys=True)}


def _report(chosen: Chosen, ranks: Sequence[int | None], spectra: Sequence[Tensor]) -> Compression:
    lost = [
        0.0 if k is None else 1 - kept_energy(s, k) for s, k in zip(spectra, ranks, strict=True)
    ]
    total = sum(lost) or 1.0
    layers = tuple(
        CompressedLayer(
            name=weight.name,
            shape=weight.layout.shape,
            rank=k if k is not None else None if weight.form == "dense" else weight.rank,
            stored_before=weight.stored,
            stored=weight.stored if k is None else weight.stored_at(k),
            loss_share=each / total,
            note="" if k is None else f"keeps {100 * (1 - each):.2f} % of its energy",
        )
        for weight, k, each in zip(chosen.weights, ranks, lost, strict=True)
    )
    others = chosen.other_numbers
    before = others + sum(layer.stored_before for layer in layers)
    return Compression(
        layers,
        "weight",
        before,
        others + sum(layer.stored for layer in layers),
        refused={each.name: each.reason for each in chosen.left if each.reason != VECTOR},
    )
