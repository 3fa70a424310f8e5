"""What a cut of a whole model did: the report, and the cut that it reports on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orthotrain.lowrank.cut import KnownWeights, stored_in
from orthotrain.lowrank.look import Decomposition
from orthotrain.lowrank.output_error import layer_error, matrices_of
from orthotrain.lowrank.settings import Importance
from orthotrain.lowrank.sites import Refusal, Site


@dataclass(frozen=True)
class CompressedLayer:
    """What ``compress`` did to one weight.

    Attributes:
        name: Qualified name of the module, or of the layer in a file.
        shape: Shape of the dense weight.
        rank: Its rank now; None while it is dense.
        stored_before: Numbers that held it before.
        stored: Numbers that hold it now.
        loss_share: Its share of what all cuts together lose, by the estimate that chose the
            ranks; 0 where it was not cut.
        output_error: ``|x (w - w')^T| / |x w^T|`` over the inputs ``x`` of the data, without the
            bias; None where it saw no data.
        note: Why it was cut by its weight alone, or, of a file's weight, the share of its energy
            that it keeps; often empty.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    stored_before: int
    stored: int
    loss_share: float
    output_error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Compression:
    """What ``compress`` did; on the model as ``.compression``. ``print`` shows a table.

    Attributes:
        layers: One row per weight that could be cut, in model order.
        importance: What ranks were chosen by: ``"loss"``, ``"input"`` or ``"weight"``.
        stored_before: Numbers that the whole model held.
        stored: Numbers that it holds.
        output_error: ``|y - y'| / |y|`` over the model's outputs on the held-out batches; None
            without any, or where the outputs cannot be compared.
        loss_before: Mean loss on the held-out batches before the cut; None without a loss.
        loss_after: The same after it.
        refused: Layers with a weight, or tensors of a file, that stay as they are, by name, and
            why.
    """

    layers: tuple[CompressedLayer, ...]
    importance: Importance
    stored_before: int
    stored: int
    output_error: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"{layer.name:{width}}  {'x'.join(map(str, layer.shape)):>12}  "
            f"{'dense' if layer.rank is None else f'rank {layer.rank}':>9}  "
            f"{layer.stored_before:>12,} to {layer.stored:>12,}  "
            f"{100 * layer.loss_share:5.1f} % of what was lost  {_said(layer)}".rstrip()
            for layer in self.layers
        ]
        percent = 100 * self.stored / self.stored_before
        total = f"stored {self.stored:,} of {self.stored_before:,} ({percent:.1f} %)"
        lines.append(f"{total}, ranks by {self.importance}")
        if self.output_error is not None:
            lines.append(f"on held-out batches the output moved by {_percent(self.output_error)}")
        if self.loss_before is not None:
            lines.append(
                f"held-out loss {self.loss_before:.5g} before, {self.loss_after:.5g} after"
            )
        lines += [f"{name} stays as it is: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def cut_and_report(
    known: KnownWeights,
    sites: Sequence[Site],
    ranks: Sequence[int | None],
    *,
    cut: Callable[[Site, Decomposition], None],
    refusals: Sequence[Refusal],
) -> Compression:
    """Cut each site, and tell what that did.

    Args:
        known: What it was decided on.
        sites: The weights, one after the other changed by ``cut``.
        ranks: What they are cut to; None where they stay as they are.
        cut: Takes a site and what it keeps.
        refusals: Of the layers that are no sites.
    """
    lost, others = known.lost(ranks), known.other_numbers
    total = sum(lost) or 1.0
    layers = []
    for site, k, each in zip(sites, ranks, lost, strict=True):
        was, a = stored_in(site), known.inputs.get(site.name)
        error = None if a is None else 0.0
        if k is not None:
            before = None if a is None else matrices_of(site)
            cut(site, known.factors(site, k))
            if a is not None and before is not None:
                error = layer_error(before, matrices_of(site), a)
        layers.append(
            CompressedLayer(
                name=site.name, shape=site.layout.shape,
                rank=site.rank if site.factored else None,
                stored_before=was, stored=stored_in(site),
                loss_share=each / total, output_error=error, note=known.note(site),
            )
        )  # fmt: skip
    return Compression(
        tuple(layers),
        known.importance,
        others + sum(layer.stored_before for layer in layers),
        others + sum(layer.stored for layer in layers),
        refused={refusal.name: refusal.reason for refusal in refusals},
    )


def _said(layer: CompressedLayer) -> str:
    error = layer.output_error
    return layer.note if error is None else f"output error {_percent(error):>7}  {layer.note}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
