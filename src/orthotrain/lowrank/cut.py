"""One cut of a whole model: what is known of its weights, the ranks, and the factors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, Final, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from orthotrain._checks import described
from orthotrain.errors import ConfigError
from orthotrain.layers import Bases, stored_numbers
from orthotrain.linalg import MetricSVD, truncated
from orthotrain.lowrank.decide import decided_ranks
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import (
    Decomposition,
    View,
    decomposed,
    decomposed_in,
    leading,
)
from orthotrain.lowrank.measure import LossFunction, Measured, measured
from orthotrain.lowrank.output_error import errors_by_rank, least_rank
from orthotrain.lowrank.rank_rule import Candidate, Limits, RankRule
from orthotrain.lowrank.reachable import require_reachable_in
from orthotrain.lowrank.settings import MAX_ASPECT, Importance, require_aspect
from orthotrain.lowrank.sites import Refusal, Selection, Site, other_numbers

#: What a cut at once is guarded by: nothing.
OPEN: Final = Limits(max_drop=1.0, min_rank_fraction=0.0)


@dataclass(frozen=True)
class KnownWeights:
    """What is known of a model's weights before a cut, measured once for any number of cuts.

    Sites of a copy of the model, in the same order, may stand for those it was measured on.

    Attributes:
        candidates: What a rank rule is told, one per site.
        views: Decompositions in the metric, by name of the site, where it saw data.
        inputs: Second moments of inputs, by name of the site, where it saw data.
        importance: What the ranks are chosen by.
        other_numbers: Stored numbers of the model outside the sites.
        only_if_cheaper: Whether a site stays as it is where its factors hold no fewer numbers.
        bases: The form that a dense site takes.
    """

    candidates: Sequence[Candidate]
    views: Mapping[str, MetricSVD]
    inputs: Mapping[str, Tensor]
    importance: Importance
    other_numbers: int
    only_if_cheaper: bool
    bases: Bases

    def ranks(
        self, sites: Sequence[Site], rule: RankRule, *, at_least: Sequence[int] = ()
    ) -> list[int | None]:
        """The rank that each site is cut to, or more; None where it stays as it is.

        Raises:
            ConfigError: The rule cannot be met with the ranks of ``at_least``.
        """
        wanted = decided_ranks(
            self.candidates, rule=rule, limits=OPEN, other_numbers=self.other_numbers,
            at_least=at_least,
        )  # fmt: skip
        return [
            k
            if not self.only_if_cheaper or stored_at(site, k, bases=self.bases) < stored_in(site)
            else None
            for site, k in zip(sites, wanted, strict=True)
        ]

    def lost(self, ranks: Sequence[int | None]) -> list[float]:
        """What each site loses by a cut, by the estimate that the rule goes by."""
        return [_lost(each, k) for each, k in zip(self.candidates, ranks, strict=True)]

    @property
    def most(self) -> float:
        """What would be lost by all of them together if nothing of them was kept."""
        return sum(_lost(each, 0) for each in self.candidates)

    def least_ranks(self, sites: Sequence[Site], bound: float) -> list[int]:
        """The rank from which on each site's output error is within a bound.

        A site that saw no data keeps the rank that it has.
        """
        ranks = []
        for site in sites:
            a = self.inputs.get(site.name)
            if a is None:
                ranks.append(site.rank)
                continue
            found = self.views.get(site.name) or decomposed(site)
            ranks.append(least_rank(errors_by_rank(site, found, a), bound))
        return ranks

    def factors(self, site: Site, rank: int) -> Decomposition:
        """Plain singular value decomposition ``p, s, qh`` of what a cut to a rank keeps."""
        if site.name in self.views:
            return truncated(self.views[site.name], rank)
        return leading(site, rank)

    def note(self, site: Site) -> str:
        """Why a site is cut by its weight alone, where that is so."""
        unseen = self.importance != "weight" and site.name not in self.views
        return "no data or no gradient reached it: cut by its share of energy" if unseen else ""


def known_weights(  # noqa: PLR0913  # two forms of data, two of what a cut is
    model: nn.Module,
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    *,
    rules: Sequence[RankRule],
    data: Iterable[Any] | None,
    loss: LossFunction | None,
    only_if_cheaper: bool,
    bases: Bases,
    what: str,
) -> KnownWeights:
    """Look at every site, in the metric of data and loss where they are given.

    Args:
        model: The inner model; it is left as it was.
        sites: Its weights that may be cut.
        refusals: Why others may not, for messages.
        rules: That will choose the ranks. A budget out of reach is told before data are read.
        data: Batches; None looks at the weights alone.
        loss: Of the model and a batch; None measures inputs alone.
        only_if_cheaper: Whether a site may stay as it is.
        bases: The form that a dense site takes.
        what: Who asks, for messages.

    Raises:
        ConfigError: A budget out of reach, or data and a loss that ``measured_metrics`` refuses.
        NonFiniteError: A weight, an input, a gradient or a loss holds NaN or infinity.
    """
    others = other_numbers(model, sites)
    importance: Importance = "weight" if data is None else "input" if loss is None else "loss"
    known = KnownWeights((), {}, {}, importance, others, only_if_cheaper, bases)
    for rule in rules:
        require_reachable_in(model, rule, sites, refusals, limits=OPEN, settings=known)
    seen = Measured({}, {})
    if data is not None:
        seen = measured(model, sites, data, loss, what=what)
    view = View(lambda site: seen.metrics.get(site.name))
    views: dict[str, MetricSVD] = {}
    for i, site in enumerate(sites):
        if (metric := seen.metrics.get(site.name)) is not None:
            views[site.name] = decomposed_in(site, metric)
        view.look(
            i, site, LayerHistory(), known, within_reach=True, found=views.get(site.name)
        )  # fmt: skip
    candidates = list(view.weighed(known).values())
    return replace(known, candidates=candidates, views=views, inputs=seen.inputs)


def chosen_layers(
    what: str,
    *,
    only: Collection[str],
    skip: Collection[str],
    also: Collection[str] = (),
    max_aspect: float = MAX_ASPECT,
) -> Selection:
    """The layers that patterns, kinds and shapes leave.

    Raises:
        ConfigError: One string stands where a collection of patterns is needed, or a
            ``max_aspect`` of 1 or less.
    """
    for name, patterns in (("skip", skip), ("only", only), ("also", also)):
        if isinstance(patterns, str):
            raise ConfigError(
                f"{what} needs {name} to be a collection of patterns, got {patterns!r}"
            )
    require_aspect(what, max_aspect)
    return Selection(skip=tuple(skip), only=tuple(only), also=tuple(also), max_aspect=max_aspect)


def require_data_for(what: str, data: object, loss: object) -> None:
    """Refuse a loss that has nothing to be measured on, or takes something else.

    Raises:
        ConfigError: A loss is given and no data, or one that does not take a model and a batch.
    """
    if loss is None:
        return
    if _takes_outputs(loss):
        raise ConfigError(
            f"{what} needs loss to take the model and a batch, loss(model, batch), and to give one "
            f"number, got {described(loss)}; call the model inside, such as "
            "loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])"
        )
    if data is None:
        raise ConfigError(f"{what} needs data to measure the loss on, got loss without data")


def _takes_outputs(loss: object) -> bool:
    """Whether a loss is one of torch's, of outputs and targets, or cannot take two arguments."""
    function = loss.func if isinstance(loss, partial) else loss
    if isinstance(function, _Loss) or getattr(function, "__module__", "") == F.__name__:
        return True
    try:
        signature(cast(Callable[..., object], loss)).bind(None, None)
    except TypeError:
        return True
    except ValueError:  # compiled code may tell no signature
        return False
    return False


def stored_in(site: Site) -> int:
    """Numbers that hold a site's weight now."""
    return stored_at(site, site.rank, bases=site.bases) if site.factored else site.dense_numbers


def stored_at(site: Site, rank: int, *, bases: Bases) -> int:
    """Numbers that hold a site's weight at a rank; a dense one takes the form of ``bases``."""
    layout = site.layout
    form = site.bases if site.factored else bases
    return layout.blocks * stored_numbers(layout.m, layout.n, rank, bases=form)


def _lost(candidate: Candidate, rank: int | None) -> float:
    energy = candidate.spectrum.double().square()
    whole = float(energy.sum())
    if rank is None or not whole:
        return 0.0
    return candidate.weight * float(energy[:, rank:].sum()) / whole
