"""What an update looks at: singular values of each weight, and how its basis has turned."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from orthotrain.errors import NonFiniteError
from orthotrain.layers import Bases
from orthotrain.linalg import (
    MetricSVD,
    basis_stability,
    metric_svd,
    polar_factor,
    thin_svd,
    truncated,
)
from orthotrain.linalg.decompose import singular_values_by_gram
from orthotrain.linalg.float32_gram import (
    RightVectors,
    float32_factors,
    float32_right_vectors,
    float32_values,
)
from orthotrain.linalg.metric_svd import metric_values, nearest_in_metric
from orthotrain.linalg.randomized import nearly_leading_factors
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.metric import Metric
from orthotrain.lowrank.rank_rule import Candidate
from orthotrain.lowrank.settings import Importance
from orthotrain.lowrank.sites import Site

Decomposition = tuple[Tensor, Tensor, Tensor]


class CutSettings(Protocol):
    """What of the settings decides how a site is seen."""

    @property
    def importance(self) -> Importance: ...  # noqa: D102
    @property
    def only_if_cheaper(self) -> bool: ...  # noqa: D102
    @property
    def bases(self) -> Bases: ...  # noqa: D102


class Cut(NamedTuple):
    """The leading part of a site's core or dense weight, and what of its energy that is.

    Attributes:
        p: ``(*blocks, m, k)`` leading left singular vectors.
        s: ``(*blocks, k)`` singular values.
        qh: ``(*blocks, k, n)`` leading right singular vectors.
        kept: ``(blocks,)`` energy kept, in the metric that the rank was chosen in.
        lost: ``(blocks,)`` energy cut.
    """

    p: Tensor
    s: Tensor
    qh: Tensor
    kept: Tensor
    lost: Tensor


@dataclass
class View:
    """What one update has seen; empty on a process that does not decide.

    A look needs singular values alone. Factors are computed where a site is cut, of the rank that
    is known by then: one decomposition per site that changes, none for one that does not. An
    update in one step cuts the weights it has just looked at, and decomposes cores once for both.

    Attributes:
        metric: Gives the metric of a site; None where it saw no data.
        at_once: Whether sites are cut as they are looked at.
        candidates: What the rank rule is told, by index of the site.
        in_metric: Names of the sites that were seen in a metric.
        unseen: Names of the sites that were cut without one.
    """

    metric: Callable[[Site], Metric | None]
    at_once: bool = False
    candidates: dict[int, Candidate] = field(default_factory=dict)
    in_metric: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)
    _vectors: dict[int, RightVectors] = field(default_factory=dict)

    def look(
        self,
        index: int,
        site: Site,
        layer: LayerHistory,
        settings: CutSettings,
        *,
        within_reach: bool,
        found: MetricSVD | None = None,
    ) -> None:
        """See one site, by what it was decomposed into where that is known."""
        metric = self.metric(site)
        if metric is not None:
            self.in_metric.add(site.name)
        if found is not None:
            s = found.s
        elif (vectors := self._core_vectors(index, site, metric)) is not None:
            s = vectors.s
        else:
            s = spectrum(site, metric)
        s = s.reshape(-1, s.shape[-1])
        self.candidates[index] = candidate_of(
            site, s, layer, within_reach=within_reach, settings=settings
        )

    def _core_vectors(self, i: int, site: Site, metric: Metric | None) -> RightVectors | None:
        """Vectors of a core beside its values, where it is cut as it is, if at all."""
        if not (self.at_once and metric is None and site.factored and not site.trains_bases):
            return None
        w = _finite_matrix(site)
        vectors = float32_right_vectors(w, digits=w.dtype)
        if vectors is not None:
            self._vectors[i] = vectors
        return vectors

    def forget_vectors(self) -> None:
        """Drop the vectors of cores, whose weights are about to go on."""
        self._vectors.clear()

    def weighed(self, settings: CutSettings) -> dict[int, Candidate]:
        """The candidates in order of the sites, with what losing each costs where it is known."""
        ordered = {i: self.candidates[i] for i in sorted(self.candidates)}
        if settings.importance != "loss":
            return ordered
        by_loss = weighed(list(ordered.values()), self.in_metric)
        return dict(zip(ordered, by_loss, strict=True))

    def cut(self, index: int, site: Site, rank: int) -> Cut:
        """A site cut to a rank, and what that takes from what was seen of it."""
        metric = self.metric(site)
        if metric is None:
            self.unseen.add(site.name)
            vectors = self._vectors.pop(index, None)
            if vectors is not None:
                factors = float32_factors(site.matrix, vectors, rank)
            else:
                factors = leading(site, rank)
        else:
            factors = truncated(leading_in(site, metric, rank), rank)
        known = self.candidates.get(index)  # out of reach nothing is cut, so all values are kept
        energy = (factors[1] if known is None else known.spectrum).square()
        energy = energy.reshape(site.layout.blocks, -1)
        return Cut(*factors, kept=energy[:, :rank].sum(1), lost=energy[:, rank:].sum(1))

    def state_dict(self) -> dict[str, Any]:
        """What was seen; copies."""
        return {
            "spectra": {i: each.spectrum.clone() for i, each in self.candidates.items()},
            "reach": sorted(i for i, each in self.candidates.items() if each.within_reach),
            "in_metric": sorted(self.in_metric),
            "unseen": sorted(self.unseen),
        }

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        sites: Sequence[Site],
        layers: Mapping[str, LayerHistory],
        settings: CutSettings,
    ) -> None:
        """Take back what ``state_dict`` gave."""
        self.in_metric, self.unseen = set(state["in_metric"]), set(state["unseen"])
        self.candidates = {
            i: candidate_of(
                sites[i], s.clone(), layers[sites[i].name],
                within_reach=i in state["reach"], settings=settings,
            )
            for i, s in state["spectra"].items()
        }  # fmt: skip


def weighed(candidates: Sequence[Candidate], metrics: Container[str]) -> list[Candidate]:
    """Candidates with what losing all of each layer costs, by the estimate of the loss.

    A layer that has no metric counts like the mean of those that have one.

    Args:
        candidates: Their spectra are in the metric of the loss, where there is one.
        metrics: Names of the layers that have one.
    """
    known = [each.spectrum.double().square().sum().item() for each in candidates
             if each.name in metrics]  # fmt: skip
    mean = sum(known) / len(known) if known else 1.0
    values = iter(known)
    return [
        replace(each, weight=next(values) if each.name in metrics else mean) for each in candidates
    ]


def candidate_of(
    site: Site,
    s: Tensor,
    layer: LayerHistory,
    *,
    within_reach: bool,
    settings: CutSettings,
) -> Candidate:
    """What a rank rule is told of a site with singular values ``s``, ``(blocks, r)``."""
    planned = layer.planned_rank
    cut_energy: Sequence[float] = layer.cut_energy
    if settings.importance != "weight" and cut_energy:  # shares of what is kept, see LayerHistory
        energy = s.double().square().sum(-1).tolist()
        cut_energy = [share * e for share, e in zip(cut_energy, energy, strict=True)]
    return Candidate(
        spectrum=s, cut_energy=cut_energy, m=site.layout.m, n=site.layout.n,
        ceiling=site.rank if site.factored or planned < 0 else planned,
        may_stay_dense=settings.only_if_cheaper and not site.factored, within_reach=within_reach,
        multiple=site.multiple, name=site.name,
        bases=site.bases if site.factored else settings.bases,
    )  # fmt: skip


def check_basis(site: Site, layer: LayerHistory) -> None:
    """Compare the basis of a layer that is dense with the one at the last update.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    if site.factored or layer.settled:
        return
    basis = polar_factor(_finite_matrix(site).float())
    if layer.basis is not None:
        layer.stability.append(float(basis_stability(layer.basis.to(basis), basis).mean()))
    layer.basis = None if layer.settled else basis


def spectrum(site: Site, metric: Metric | None = None) -> Tensor:
    """``(blocks, r)`` singular values of a site's core, or of its dense weight.

    Right to 1e-6 of the largest for weights in float32 or less; of cores whose smallest value is
    not small, to ``float32_values``.

    Args:
        site: Dense or low-rank.
        metric: What they are seen in; None is none.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    w, digits = _finite_matrix(site), site.parameter.dtype
    if metric is not None:
        s = metric_values(_scaled(w, metric), a=metric.a, b=metric.b, digits=digits)
    elif site.factored and (found := float32_values(w, digits=digits)) is not None:
        s = found
    else:
        s = singular_values_by_gram(w, digits=digits)
    return s.reshape(-1, s.shape[-1])


def leading(site: Site, rank: int) -> Decomposition:
    """``p, s, qh`` of a site's core, or of its dense weight, at a rank.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    w, digits = _finite_matrix(site), site.parameter.dtype
    vectors = float32_right_vectors(w, digits=digits) if site.factored else None
    if vectors is not None:
        return float32_factors(w, vectors, rank)
    return nearly_leading_factors(w, rank, digits=digits, generator=_sketches())


def leading_in(site: Site, metric: Metric, rank: int) -> MetricSVD:
    """The same in a metric.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    w = _scaled(_finite_matrix(site), metric)
    found = nearest_in_metric(
        w, rank, a=metric.a, b=metric.b, digits=site.parameter.dtype, generator=_sketches()
    )
    return _unscaled(found, metric)


def _sketches() -> torch.Generator:
    """The same draws for each cut: no process and no resume can see others."""
    return torch.Generator().manual_seed(0)


def decomposed(site: Site) -> Decomposition:
    """Thin SVD of a site's core, or of its dense weight, in the working precision.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    return thin_svd(_finite_matrix(site))


def decomposed_in(site: Site, metric: Metric) -> MetricSVD:
    """Decomposition of a site's core, or of its dense weight, in a metric.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    w = _scaled(_finite_matrix(site), metric)
    return _unscaled(metric_svd(w, a=metric.a, b=metric.b), metric)


def _scaled(w: Tensor, metric: Metric) -> Tensor:
    return w if metric.scale is None else w * metric.scale


def _unscaled(found: MetricSVD, metric: Metric) -> MetricSVD:
    left, s, right = found
    return found if metric.scale is None else MetricSVD(left, s, right / metric.scale)


def require_finite(site: Site) -> None:
    """Refuse a weight that no decomposition can take.

    Raises:
        NonFiniteError: The weight holds NaN or infinity; the message names the layer.
    """
    if not bool(torch.isfinite(site.parameter).all()):
        raise NonFiniteError(
            f"a decomposition needs finite weights, got NaN or infinity in {site.name}, shape "
            f"{tuple(site.parameter.shape)}. Go on from the last good checkpoint with a lower "
            "learning rate or clipped gradients"
        )


def _finite_matrix(site: Site) -> Tensor:
    require_finite(site)
    return site.matrix
