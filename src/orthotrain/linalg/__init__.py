"""Pure functions on tensors: ``(*batch, m, n)`` in, batch entries independent, input untouched."""

from typing import TYPE_CHECKING

from orthotrain._doors import checked
from orthotrain._names import lazy_names
from orthotrain.linalg.decompose import thin_svd
from orthotrain.linalg.decompose import working_dtype as _working_dtype
from orthotrain.linalg.metric_svd import MetricSVD, metric_svd, truncated

if TYPE_CHECKING:
    from orthotrain.linalg._root_checks import RootGradient, RootMethod
    from orthotrain.linalg._spectral_gradient import SpectralGradient
    from orthotrain.linalg.condition import (
        ConditionReadings,
        condition_number,
        condition_readings,
    )
    from orthotrain.linalg.polar import PolarMethod, polar_factor
    from orthotrain.linalg.rank import effective_rank, numerical_rank, ranks_within_budget
    from orthotrain.linalg.skew import (
        ConvSpectralBound,
        cayley_transform,
        conv_exponential,
        conv_skew_part,
        conv_spectral_bound,
        exponential_remainder,
        skew_exponential,
        skew_part,
    )
    from orthotrain.linalg.spd_root import spd_inv_sqrt, spd_sqrt
    from orthotrain.linalg.subspace import (
        basis_stability,
        basis_stability_from_polar,
        mixing_similarity,
    )
    from orthotrain.linalg.svd_grad import eigh, svd

# Kernels ask this many times per call, and come in by the door once.
working_dtype = checked(_working_dtype)

__all__ = [
    "ConditionReadings",
    "ConvSpectralBound",
    "MetricSVD",
    "PolarMethod",
    "RootGradient",
    "RootMethod",
    "SpectralGradient",
    "basis_stability",
    "basis_stability_from_polar",
    "cayley_transform",
    "condition_number",
    "condition_readings",
    "conv_exponential",
    "conv_skew_part",
    "conv_spectral_bound",
    "effective_rank",
    "eigh",
    "exponential_remainder",
    "metric_svd",
    "mixing_similarity",
    "numerical_rank",
    "polar_factor",
    "ranks_within_budget",
    "skew_exponential",
    "skew_part",
    "spd_inv_sqrt",
    "spd_sqrt",
    "svd",
    "thin_svd",
    "truncated",
    "working_dtype",
]
_HOME = {
    "ConditionReadings": "condition",
    "ConvSpectralBound": "skew",
    "PolarMethod": "polar",
    "RootGradient": "_root_checks",
    "RootMethod": "_root_checks",
    "SpectralGradient": "_spectral_gradient",
    "basis_stability": "subspace",
    "basis_stability_from_polar": "subspace",
    "cayley_transform": "skew",
    "condition_number": "condition",
    "condition_readings": "condition",
    "conv_exponential": "skew",
    "conv_skew_part": "skew",
    "conv_spectral_bound": "skew",
    "effective_rank": "rank",
    "eigh": "svd_grad",
    "exponential_remainder": "skew",
    "mixing_similarity": "subspace",
    "numerical_rank": "rank",
    "polar_factor": "polar",
    "ranks_within_budget": "rank",
    "skew_exponential": "skew",
    "skew_part": "skew",
    "spd_inv_sqrt": "spd_root",
    "spd_sqrt": "spd_root",
    "svd": "svd_grad",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
