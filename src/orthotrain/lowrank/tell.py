"""What low-rank training tells about itself: its plan, a row per weight, and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from orthotrain.layers import stored_numbers
from orthotrain.lowrank.decide import factored_pays, tail_length, updates_to_reach_all
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.schedule import Schedule
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Refusal, Site
from orthotrain.methods import Row
from orthotrain.methods.summary import Form


def plan_of(  # noqa: PLR0913  # all that a plan follows from
    settings: LowRankSettings,
    schedule: Schedule,
    sites: Sequence[Site],
    *,
    numbers: int,
    stored: int,
    refused: int,
    total_steps: int | None,
) -> list[str]:
    """When layers switch, when every layer is reached, and what it costs, one line each.

    Args:
        settings: Those of the method.
        schedule: When updates are due.
        sites: All layers.
        numbers: In the dense model.
        stored: Numbers that the model holds now.
        refused: Layers that stay as they are.
        total_steps: Of the run, where they are known.
    """
    layers, every, fraction = len(sites), schedule.every, settings.layer_fraction
    lines = [f"{layers} layers can become low-rank, {refused} stay as they are"]
    if schedule.window:
        what = "inputs" if settings.importance == "input" else "inputs and output gradients"
        steps = min(schedule.window, schedule.first)
        lines.append(f"the {what} of the {steps} steps before an update decide what is cut")
    if schedule.settling:
        lines.append(
            f"each layer switches once its basis settles, checked every {every} steps, at the "
            f"earliest after step {schedule.first_switch}"
        )
    else:
        when = f"after step {schedule.first}" if every is None else f"from step {schedule.first} on"
        updates = "one update" if every is None else f"an update every {every} steps"
        switch = (
            f"layers switch {when}, each where its rank makes it cheaper than dense"
            if settings.only_if_cheaper
            else f"all layers switch after step {schedule.first}"
        )
        lines.append(f"{switch}; {updates}")
    per_step = schedule.layers_per_step(layers, total_steps=total_steps)
    steps = math.ceil(schedule.parts * layers / per_step)
    if settings.spread and steps > 1:
        lines.append(f"an update is spread over up to {steps} steps")
    lines.append("until then, training needs the memory of dense training: that is the peak")
    if promise := settings.rank.promise(numbers, stored=stored):
        lines.append(promise if every is None else f"the goal once updates allow it: {promise}")
    if every is None or schedule.settling:
        return lines
    reach_all = updates_to_reach_all(layers=layers, layer_fraction=fraction)
    last = schedule.first + (reach_all - 1) * every
    lines.append(f"update {reach_all}, after step {last}, is the first to reach every layer")
    if total_steps is None:
        return lines
    made = (total_steps - schedule.first) // every + 1
    if last > total_steps:
        reached = tail_length(made, layers=layers, layer_fraction=fraction)
        lines.append(f"the run ends at step {total_steps}: only {reached} of {layers} are reached")
    left = (1 - settings.max_drop) ** made
    if left > settings.min_rank_fraction:
        lines.append(f"the {made} updates of the run leave at least {100 * left:.3g} % of a rank")
    return lines


def row_of(site: Site, layer: LayerHistory) -> Row:
    """The row of one weight in ``handle.summary()``."""
    layout, dense, numbers = site.layout, site.dense_numbers, site.parameter.numel()
    trainable = numbers if site.parameter.requires_grad else 0
    if not site.factored:
        planned = f"rank {layer.planned_rank} would not be cheaper than dense yet"
        note = planned if layer.planned_rank > 0 else ""
        note = note if trainable else "frozen"
        return Row(site.name, layout.shape, None, trainable, dense, dense, "dense", note)
    k = site.rank
    stored = layout.blocks * stored_numbers(layout.m, layout.n, k, bases=site.bases)
    since = f"since step {layer.switched_at}" if layer.switched_at >= 0 else ""
    said = (
        "" if trainable else "frozen",
        since if trainable else "",
        "stores more than dense" if stored > dense else "",
    )
    form: Form = "factored" if factored_pays(layout.m, layout.n, k) else "materialized"
    if site.trains_bases:
        form = "two factors"
    return Row(
        name=site.name, shape=layout.shape, rank=k, trainable=trainable, stored=stored,
        dense=dense, form=form, note=", ".join(filter(None, said)), buffers=stored - numbers,
    )  # fmt: skip


def notes_on(  # noqa: PLR0913  # all that there may be to say
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    layers: Mapping[str, LayerHistory],
    *,
    schedule: Schedule,
    updates: int,
    losses_seen: bool,
    unseen: Sequence[str] = (),
) -> list[str]:
    """Layers left as they are with the reason, cuts that hurt, and what has no effect yet.

    The guard on the loss delays the next cut of a layer; where there is only one, it just tells.
    """
    notes = [f"{refusal.name}: {refusal.reason}" for refusal in refusals]
    notes += [
        f"{name}: no gradient reached it before its last update: cut by its share of energy"
        for name in unseen
    ]
    low_rank = any(site.factored for site in sites)
    if low_rank and not updates:
        notes.append(
            "layers are low-rank although no update was made: where this is a resumed run, "
            "handle.load_state_dict takes back its schedule"
        )
    if schedule.settling and not low_rank:
        notes.append(
            "no basis has settled yet; a layer switches after step "
            f"{schedule.first_switch} at the earliest, or give total_steps to attach"
        )
    if not low_rank and any(layer.planned_rank > 0 for layer in layers.values()):
        notes.append(
            f"no layer is low-rank after update {updates}: no planned rank is cheaper than dense "
            "yet; wait for more updates, choose a rank rule that cuts more, or set "
            "only_if_cheaper=False"
        )
    if schedule.every is None:
        if any(layer.strikes for layer in layers.values()):
            notes.append(
                "the cut made the training loss jump; where it does not come back, cut less or "
                "leave more steps after it"
            )
        return notes
    notes += [
        f"{name}: {layer.strikes} of its cuts made the loss jump, next cuts delayed"
        for name, layer in layers.items()
        if layer.strikes
    ]
    if updates and not losses_seen:
        notes.append(
            "no training loss was seen, so cuts that hurt go unnoticed; "
            "call handle.observe(loss) once per step"
        )
    return notes
