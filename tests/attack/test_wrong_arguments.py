"""Wrong arguments at every public door: a sample by default, everything in the slow run.

The ceilings may only fall.
"""

from __future__ import annotations

import pytest

from attack.wrong_arguments import FORWARDS, attack, public_calls

# Before there was one check of arguments: 49 % typed, 2,649 raw, 886 silent of 7,524 calls.
SAMPLE = (
    "AdaptiveLowRank", "Budget", "LowRankLinear", "LowRankLinear.forward", "attach", "mig",
    "polar_factor", "slerp", "spd_sqrt",
)  # fmt: skip
CEILING = {"raw": 10, "silent": 0, "hang": 0, "crash": 0}


def held(names: list[str], ceiling: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = attack(names)
    with capsys.disabled():
        print(f"\n{outcomes.table()}")  # noqa: T201
    told = "\n".join(outcomes.cases)
    assert outcomes.typed_share >= 0.98, told
    for kind, most in ceiling.items():
        assert outcomes.counts[kind] <= most, f"{kind}\n{told}"
    assert outcomes.names == set(names)


def test_a_sample_of_names(capsys):
    held(list(SAMPLE), CEILING | {"raw": 1}, capsys)


@pytest.mark.slow
def test_every_public_name(capsys):
    held(sorted(public_calls()), CEILING, capsys)


def test_every_forward_pass_has_its_constructor():
    assert {owner for owner, _ in FORWARDS.values()} <= set(public_calls())
