"""Two processes that share each batch train what one process trains with whole batches."""

import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from lab.run.team_worker import (
    LONG,
    SCENARIOS,
    SLOW,
    WORLD,
    float64,
    lowrank_trainer,
    run_scenario,
    train_together,
)
from lab.run.tiny import assert_same_training, flat, without_times
from orthotrain.errors import ConfigError
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.record import RunFolder, SeedFolder, read_json, read_metrics
from orthotrain.lab.run.restore import read_network
from orthotrain.lab.run.team import ALONE, Team
from orthotrain.lowrank import to_dense
from processes import outcomes_of

WORKER = Path(__file__).with_name("team_worker.py")
RTOL = 1e-12
# Monitors divide by small singular values, which passes rounding on.
RTOL_OF_MONITORS = 1e-9
# Operations are those that were carried out: which order of products is cheapest for low-rank
# layers depends on the rows that a process has.
# These two conditions divide by the smallest value, which may be rounding alone.
DIFFERENT = {"compute", "compute_before", "condition_float32", "condition_float64"}


def outcomes(name, tmp_path_factory):
    """What happened to both processes, and their folder."""
    found = outcomes_of(WORKER, WORLD, name=name, tmp_path_factory=tmp_path_factory, seconds=600)
    base = tmp_path_factory.getbasetemp()
    return [*found, next(p / name for p in (base, base.parent) if (p / name).exists())]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return outcomes("team", tmp_path_factory)


@pytest.fixture(scope="module")
def both_slow(tmp_path_factory):
    return outcomes(SLOW, tmp_path_factory)


def close(a, b, rtol):
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        return a.shape == b.shape and float((a - b).abs().max()) <= rtol * scale
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=rtol, abs_tol=rtol)
    return a == b


def assert_close(one, other, rtol=RTOL):
    """Two nested values with the same names, their numbers equal to 1e-12 of their size."""
    one, other = flat(one), flat(other)
    assert [name for name, _ in one] == [name for name, _ in other]
    for (name, a), (_, b) in zip(one, other, strict=True):
        if name.split(".")[-1] not in DIFFERENT:
            assert close(a, b, rtol), (name, a, b)


def assert_same_lines(*places):
    """Without the covariances, of which a monitor reads those of its process's part."""
    lines = [without_times(read_metrics(place.metrics)) for place in places]
    seen = [[x for x in each if x["kind"] == "condition"] for each in lines]
    assert_close(*([x for x in each if x["kind"] != "condition"] for each in lines))
    seen = [[x for x in each if x["what"] != "covariance"] for each in seen]
    assert_close(*seen, rtol=RTOL_OF_MONITORS)


def assert_same_run(name, folder, alone):
    run_scenario(name, alone)
    for variant in SCENARIOS[name][3]:
        one, two = (RunFolder(path).seed(variant, 0) for path in (alone, folder / name))
        # Weights as they act: the bases of a low-rank layer may turn where its weight does not.
        with float64():
            networks = [to_dense(read_network(place.checkpoint)) for place in (two, one)]
        assert_close(*(network.state_dict() for network in networks))
        assert_close(*(without_times([read_json(place.result)]) for place in (two, one)))
        assert_same_lines(two, one)
        if variant in ("dense", "bn", "nog-olr", "nog-ow"):
            training = [load_checkpoint(place.checkpoint)["training"] for place in (two, one)]
            assert_close(*training)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in LONG])
def test_a_team_trains_what_one_process_trains(both, tmp_path, name):
    assert_same_run(name, both[2], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_team_trains_every_other_variant(both_slow, tmp_path, name):
    assert_same_run(name, both_slow[2], tmp_path)


@pytest.mark.slow
def test_a_team_goes_on_after_a_kill_bit_for_bit(both):
    folder = both[2]
    assert both[0]["after a kill"] == both[1]["after a kill"] == ""
    whole, again = SeedFolder(folder / "whole"), SeedFolder(folder / "again")
    assert_same_training(again, whole)
    results = [without_times([read_json(place.result)]) for place in (again, whole)]
    assert results[0] == results[1]


@pytest.mark.slow
def test_one_process_goes_on_with_what_a_team_began(both, tmp_path):
    whole, place = SeedFolder(both[2] / "whole"), SeedFolder(tmp_path / "alone")
    shutil.copytree(whole.path, place.path)
    place.result.unlink()
    os.replace(place.previous_checkpoint, place.checkpoint)
    assert train_together(ALONE, lowrank_trainer(), place.path) == ""
    assert_close(*(without_times([read_json(one.result)]) for one in (place, whole)))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(both):
    for outcome in both[:2]:
        assert outcome["stopped"] == ["Stopped: 15", 6, ""]
    assert_same_training(SeedFolder(both[2] / "stopped"), SeedFolder(both[2] / "whole"))


@pytest.mark.slow
def test_only_the_main_process_writes(both):
    names = {path.name for path in (both[2] / "whole").iterdir()}
    assert names == {"checkpoint.pt", "checkpoint.previous.pt", "metrics.jsonl", "result.json"}
    # One line per step: none is written twice.
    steps = [line["step"] for line in read_metrics(both[2] / "whole/metrics.jsonl")
             if line["kind"] == "step"]  # fmt: skip
    assert steps == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.bad_input
def test_what_a_team_cannot_train_is_refused_on_all_processes(both):
    for outcome in both[:2]:
        no_join, small, elsewhere = outcome["refused"]
        assert "ConfigError: variant plain cannot be trained by 2 processes" in no_join
        assert "--workers" in no_join
        assert "a batch of 1 cannot be divided among 2 processes" in small
        assert "--data.batch_size" in small
        assert "ConfigError: train: processes that train together must agree" in elsewhere
        assert "All machines need the same folder" in elsewhere


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(both):
    message, told = both[0]["died"]
    assert told, message
    assert "died" not in both[1]


def test_parts_are_the_whole_batch_and_differ_by_one_at_most():
    for count in range(1, 6):
        for batch in range(count, 12):
            parts = [range(batch)[Team(rank, count).part(batch)] for rank in range(count)]
            assert [i for part in parts for i in part] == list(range(batch))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.bad_input
def test_a_batch_smaller_than_the_team_is_refused():
    with pytest.raises(ConfigError, match="a batch of 2 cannot be divided among 3"):
        Team(2, 3).part(2)


def test_one_process_is_left_as_it_is():
    model, loss = torch.nn.BatchNorm1d(2), torch.ones(())
    assert ALONE.wrapped(model) is model
    assert type(model) is torch.nn.BatchNorm1d
    assert ALONE.weighted(loss, part=3, batch=3) is loss
    assert ALONE.agreed(None) is None
    assert ALONE.agreed(15) == 15
