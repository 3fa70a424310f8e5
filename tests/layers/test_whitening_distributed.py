"""Two processes whiten together: what each holds is its part of the whole batch's result."""

import pytest
import torch

from layers import whitening_worker as worker
from layers.whitening_worker import CHANNELS, SETTINGS, SPLITS, STEPS, WORLD, batch, part
from orthotrain.layers import DecorrelatedBatchNorm2d
from processes import outcomes_of


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Outcomes of every scenario, on the first and on the other process."""
    return outcomes_of(
        worker.__file__, WORLD, name="two-processes-whiten", tmp_path_factory=tmp_path_factory
    )


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def assert_parts_of(both, scenario, whole, split):
    """Outputs and input gradients are parts, parameter gradients sum up, statistics are equal."""
    outcomes = [each[scenario] for each in both]
    assert outcomes[0].keys() == whole.keys()
    for name, expected in whole.items():
        for rank, outcome in enumerate(outcomes):
            if name.startswith(("y", "grad")):
                close(outcome[name], part(expected, split, rank))
            elif name in ("weight", "bias"):
                close(outcomes[0][name] + outcomes[1][name], expected)
            else:
                close(outcome[name], expected)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("split", SPLITS)
def test_shared_statistics_give_the_whole_batch(both, split, settings):
    whole = worker.layer_alone(SPLITS[split], SETTINGS[settings], synchronize=False)
    assert len(whole) == 2 * STEPS + 5
    assert_parts_of(both, f"{split}, {settings}", whole, SPLITS[split])


def test_memory_format_does_not_matter(both):
    whole = worker.layer_alone((6, 2), {}, synchronize=False)
    assert_parts_of(both, "channels last", whole, (6, 2))


@pytest.mark.parametrize("scenario", ["not shared", "own group"])
def test_statistics_that_are_not_shared_are_those_of_a_part(both, scenario):
    """The negative control: without sharing nothing above holds."""
    whole = worker.layer_alone((4, 4), {}, synchronize=False)
    for rank in range(WORLD):
        outcome = both[rank][scenario]
        assert (outcome["y0"] - part(whole["y0"], (4, 4), rank)).abs().max() > 0.1
        assert (outcome["grad0"] - part(whole["grad0"], (4, 4), rank)).abs().max() > 0.01
        close(outcome["y0"], worker.layer_alone((4, 4), {}, rank, synchronize=False)["y0"])


def test_statistics_are_bit_equal_on_both(both):
    for name in ("running_mean", "running_covariance"):
        first, other = (each["uneven, groups"][name] for each in both)
        assert torch.equal(first, other)


def test_training_under_ddp_is_training_on_the_whole_batch(both):
    whole = worker.training()
    for each in both:
        assert each["training"].keys() == whole.keys()
        for name, expected in whole.items():
            close(each["training"][name], expected)
        apart = each["training, not shared"]
        assert (apart["0.weight"] - whole["0.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("not a number", "NonFiniteError: DecorrelatedBatchNorm2d(6) cannot take the root"),
        ("one value", "ShapeError: DecorrelatedBatchNorm2d(6) needs more than one value"),
        ("few samples", "ShapeError: DecorrelatedBatchNorm2d(6) needs more samples than channels"),
    ],
)
def test_bad_input_of_one_is_an_error_on_both(both, scenario, message):
    for each in both:
        assert each["bad input"][scenario].startswith(message)
        assert each["bad input"]["batches"] == 0
    if scenario == "few samples":
        assert "got 4 samples" in both[0]["bad input"][scenario]


def test_evaluation_and_covariance_do_not_communicate(both):
    mine = part(batch(0), (4, 4), 0)
    layer = DecorrelatedBatchNorm2d(CHANNELS, dtype=torch.float64)
    done = both[0]["alone"]
    close(done["covariance"], layer.covariance(mine))
    close(done["evaluation by its batch"], layer(mine).detach())
    layer.reset_running_stats()
    close(done["evaluation"], layer.eval()(mine).detach())
