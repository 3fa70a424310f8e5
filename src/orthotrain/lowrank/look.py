"""What an update looks at: singular values of each weight, and how its basis has turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orthotrain.errors import NonFiniteError
from orthotrain.layers import Bases
from orthotrain.linalg import MetricSVD, basis_stability, metric_svd, polar_factor, thin_svd
from orthotrain.linalg.decompose import singular_values
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.metric import Metric
from orthotrain.lowrank.rank_rule import Candidate
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Site

Decomposition = tuple[Tensor, Tensor, Tensor]


@dataclass
class View:
    """What one update has seen; empty on a process that does not decide.

    Attributes:
        candidates: What the rank rule is told, by index of the site.
        decompositions: Those that were made to see it, by name of the site.
    """

    candidates: dict[int, Candidate] = field(default_factory=dict)
    decompositions: dict[str, Decomposition] = field(default_factory=dict)

    def look(
        self,
        sites: Sequence[Site],
        layers: Mapping[str, LayerHistory],
        settings: LowRankSettings,
        reach: Set[int],
    ) -> None:
        """See the sites within reach, and all others where the rank rule asks for them."""
        known = range(len(sites)) if settings.rank.sees_all_layers else sorted(reach)
        for i in known:
            site, layer = sites[i], layers[sites[i].name]
            if site.factored and i in reach:  # it will turn in any case: decompose it once
                _, s, _ = self.decompositions[site.name] = decomposed(site)
                s = s.reshape(-1, s.shape[-1])
            else:
                s = spectrum(site)
            self.candidates[i] = candidate_of(
                site, s, layer, within_reach=i in reach,
                only_if_cheaper=settings.only_if_cheaper, bases=settings.bases,
            )  # fmt: skip

    def decomposition(self, site: Site) -> Decomposition:
        """The one that the decision was made on, where there is one."""
        known = self.decompositions.pop(site.name, None)
        return decomposed(site) if known is None else known


def candidate_of(
    site: Site,
    s: Tensor,
    layer: LayerHistory,
    *,
    within_reach: bool,
    only_if_cheaper: bool,
    bases: Bases = "frozen",
) -> Candidate:
    """What a rank rule is told of a site with singular values ``s``, ``(blocks, r)``."""
    planned = layer.planned_rank
    return Candidate(
        spectrum=s, cut_energy=layer.cut_energy, m=site.layout.m, n=site.layout.n,
        ceiling=site.rank if site.factored or planned < 0 else planned,
        may_stay_dense=only_if_cheaper and not site.factored, within_reach=within_reach,
        multiple=site.multiple, name=site.name,
        bases=site.bases if site.factored else bases,
    )  # fmt: skip


def check_bases(sites: Sequence[Site], layers: Mapping[str, LayerHistory]) -> None:
    """Compare each dense layer's basis with the one at the last update.

    Raises:
        NonFiniteError: A weight holds NaN or infinity.
    """
    for site in sites:
        layer = layers[site.name]
        if site.factored or layer.settled:
            continue
        basis = polar_factor(_finite_matrix(site).float())
        if layer.basis is not None:
            layer.stability.append(float(basis_stability(layer.basis.to(basis), basis).mean()))
        layer.basis = None if layer.settled else basis


def spectrum(site: Site) -> Tensor:
    """``(blocks, r)`` singular values of a site's core, or of its dense weight.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    s = singular_values(_finite_matrix(site))
    return s.reshape(-1, s.shape[-1])


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
    return metric_svd(_finite_matrix(site), a=metric.a, b=metric.b)


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
