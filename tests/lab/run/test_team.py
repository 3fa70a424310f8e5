"""Two processes that share each batch train what one process trains with whole batches."""

import math
from pathlib import Path

import pytest
import torch

from lab.run.team_worker import SCENARIOS, WORLD, run_scenario
from lab.run.tiny import assert_same_training, flat, without_times
from orthotrain.errors import ConfigError
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.record import RunFolder, SeedFolder, read_json, read_metrics
from orthotrain.lab.run.team import Team
from processes import outcomes_of

WORKER = Path(__file__).with_name("team_worker.py")
RTOL = 1e-12
# Operations that are carried out: a part of a batch may be cheapest in another order of products.
# And the covariance that a monitor reads is that of the process's own part.
DIFFERENT = {"compute", "compute_before", "shares"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What happened to the first and to the other process, and their folder."""
    outcomes = outcomes_of(WORKER, WORLD, name="team", tmp_path_factory=tmp_path_factory)
    base = tmp_path_factory.getbasetemp()
    return [*outcomes, next(p / "team" for p in (base, base.parent) if (p / "team").exists())]


def assert_close(one, other):
    """Two nested values with the same names, their numbers equal to 1e-12 of their size."""
    one, other = flat(one), flat(other)
    assert [name for name, _ in one] == [name for name, _ in other]
    for (name, a), (_, b) in zip(one, other, strict=True):
        if DIFFERENT & set(name.split(".")):
            continue
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
            assert a.shape == b.shape, name
            assert torch.allclose(a, b, rtol=0, atol=RTOL * scale), (name, (a - b).abs().max())
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), name
        elif isinstance(a, float) and isinstance(b, float):
            assert math.isclose(a, b, rel_tol=RTOL, abs_tol=RTOL), (name, a, b)
        else:
            assert a == b, name


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_team_trains_what_one_process_trains(both, tmp_path, name):
    run_scenario(name, tmp_path)
    alone, together = RunFolder(tmp_path), RunFolder(both[2] / name)
    for variant in SCENARIOS[name][3]:
        one, two = alone.seed(variant, 0), together.seed(variant, 0)
        assert_close(*(load_checkpoint(place.checkpoint)["training"] for place in (two, one)))
        assert_close(*(without_times([read_json(place.result)]) for place in (two, one)))
        assert_close(*(without_times(read_metrics(place.metrics)) for place in (two, one)))
