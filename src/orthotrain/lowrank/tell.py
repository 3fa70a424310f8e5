"""What low-rank training tells about itself: its plan, a row per weight, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orthotrain.layers import stored_numbers
from orthotrain.lowrank.decide import factored_pays, tail_length, updates_to_reach_all
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.schedule import Schedule
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Refusal, Site
from orthotrain.methods import Row
from orthotrain.methods.summary import Form


def plan_of(
    settings: LowRankSettings,
    schedule: Schedule,
    sites: Sequence[Site],
    *,
    numbers: int,
    refused: int,
    total_steps: int | None,
) -> list[str]:
    """When layers switch, when every layer is reached, and what it costs, one line each."""
    layers, every, fraction = len(sites), schedule.every, settings.layer_fraction
    lines = [f"{layers} layers can become low-rank, {refused} stay as they are"]
    if schedule.window:
        what = "inputs" if settings.importance == "input" else "inputs and output gradients"
        steps = min(schedule.window, schedule.first)
        lines.append(f"the {what} of the {steps} steps before an update decide what is cut")
    if schedule.settling:
        return [*lines, f"each layer switches once its basis settles, checked every {every} steps"]
    when = f"after step {schedule.first}" if every is None else f"from step {schedule.first} on"
    once = "where its rank makes it cheaper than dense"
    switch = (
        f"layers switch {when}, each {once}"
        if settings.only_if_cheaper
        else f"all layers switch after step {schedule.first}"
    )
    lines.append(f"{switch}; {'one update' if every is None else f'an update every {every} steps'}")
    if settings.spread:
        lines.append(f"an update is spread over up to {2 * layers} steps")
    lines.append("until then, training needs the memory of dense training: that is the peak")
    if promise := settings.rank.promise(numbers):
        lines.append(promise)
    if every is None:
        return lines
    reach_all = updates_to_reach_all(layers=layers, layer_fraction=fraction)
    last = schedule.first + (reach_all - 1) * every
    lines.append(f"update {reach_all}, after step {last}, is the first to reach every layer")
    if total_steps is not None and last > total_steps:
        updates = (total_steps - schedule.first) // every + 1
        reached = tail_length(updates, layers=layers, layer_fraction=fraction)
        lines.append(f"the run ends at step {total_steps}: only {reached} of {layers} are reached")
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


def notes_on(
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    layers: Mapping[str, LayerHistory],
    *,
    updates: int,
    losses_seen: bool,
    unseen: Sequence[str] = (),
) -> list[str]:
    """Layers left as they are with the reason, cuts that hurt, and what has no effect yet."""
    notes = [f"{refusal.name}: {refusal.reason}" for refusal in refusals]
    notes += [
        f"{name}: no gradient reached it before its last update, so it was cut by its own "
        "singular values"
        for name in unseen
    ]
    low_rank = any(site.factored for site in sites)
    if low_rank and not updates:
        notes.append(
            "layers are low-rank although no update was made: where this is a resumed run, "
            "handle.load_state_dict takes back its schedule"
        )
    if not low_rank and any(layer.planned_rank > 0 for layer in layers.values()):
        notes.append(
            f"no layer is low-rank after update {updates}: no planned rank is cheaper than dense "
            "yet; wait for more updates, choose a rank rule that cuts more, or set "
            "only_if_cheaper=False"
        )
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
