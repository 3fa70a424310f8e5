"""Wrong arguments at every public door: a sample by default, everything in the slow run.

The ceilings may only fall.
"""

from __future__ import annotations

import pytest

from attack.counts import Counts
from attack.wrong_arguments import FORWARDS, attack, public_calls, public_names

# Before there was one check of arguments: 49 % typed, 2,649 raw, 886 silent of 7,524 calls.
SAMPLE = (
    "AdaptiveLowRank", "Budget", "LowRankLinear", "LowRankLinear.forward", "attach", "mig",
    "polar_factor", "slerp", "spd_sqrt",
)  # fmt: skip
CEILING = {"raw": 9, "silent": 0, "hang": 0, "crash": 0}


# What the library hands out itself, bases that users derive from, and names of choices.
NOT_CALLED = {
    "Bases", "Bound", "Branch", "ChanceLevel", "CompressedLayer", "Compression",
    "ConditionReadings", "ConvSpectralBound", "DciScore", "DensityCoverage", "Evaluation",
    "FactorDataset", "FactorVaeScore", "Fidelity", "GradientMethod", "Handle", "ImageSet",
    "Interventions", "LatentEncoder", "LayerRule", "MetricSVD", "Method", "PathLength", "Phase",
    "PolarMethod", "PrecisionRecall", "RankRule", "Record", "RootGradient", "RootMethod",
    "RotatedGenerator", "Row", "Run", "Score", "Sizes", "SpectralGradient", "SpriteMoments",
    "Summary", "Target", "Total", "VariationPredictability", "VoteScore", "WeightMethod",
    "pixel_features",
}  # fmt: skip


def held(names: list[str], ceiling: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = attack(names)
    told = "\n".join(outcomes.cases)
    counts = Counts(f"wrong arguments for {len(names)} names", **ceiling)
    counts.found.update(outcomes.counts)
    counts.examples = dict.fromkeys(ceiling, told)
    with capsys.disabled():
        print(f"\n{outcomes.table()}")  # noqa: T201
        counts.check(least=10 * len(names))
    assert outcomes.typed_share >= 0.98, told
    assert outcomes.names == set(names)


def test_every_public_name_is_attacked():
    assert public_names() - set(public_calls()) == NOT_CALLED


def test_a_sample_of_names(capsys):
    held(list(SAMPLE), CEILING | {"raw": 0}, capsys)


@pytest.mark.slow
def test_every_public_name(capsys):
    held(sorted(public_calls()), CEILING, capsys)


def test_every_forward_pass_has_its_constructor():
    assert {owner for owner, _ in FORWARDS.values()} <= set(public_calls())
