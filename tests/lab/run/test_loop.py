import math
import statistics
from dataclasses import replace
from functools import partial

import pytest
import torch

from lab.run.tiny import (
    CONFIG,
    TOTAL_STEPS,
    KillAt,
    Killed,
    assert_goes_on,
    assert_same_bits,
    split_of,
    tiny_data,
    train_here,
    trainer_of,
    without_times,
)
from orthotrain.errors import CheckpointError, NonFiniteError
from orthotrain.lab.experiments.classifier.trainer import evaluate
from orthotrain.lab.experiments.lowrank.config import DENSE, PAPER
from orthotrain.lab.run import record
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.record import SeedFolder, read_json, read_metrics


@pytest.fixture(params=[DENSE, PAPER])
def variant(request):
    return request.param


def test_a_run_learns_and_leaves_its_record(tmp_path, variant):
    result = train_here(tmp_path, name=variant)
    folder = SeedFolder(tmp_path)
    lines = read_metrics(folder.metrics)
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert len(losses) == TOTAL_STEPS
    assert losses[-1] < 0.7 * losses[0]
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [1, 2, 3, 4]
    # The first look of the stability record is before the first step, so each epoch has a pair.
    assert {line["epoch"] for line in lines if line["kind"] == "stability"} == {1, 2, 3, 4}
    assert read_json(folder.result) == result
    assert result["steps"] == TOTAL_STEPS
    assert result["training_bytes"] == sum(
        result[f"{name}_bytes"] for name in ("weight", "gradient", "state")
    )


def test_low_rank_sizes_and_ranks_are_written_when_they_change(tmp_path):
    result = train_here(tmp_path, name=PAPER)
    lines = read_metrics(SeedFolder(tmp_path).metrics)
    sizes = {line["step"]: line for line in lines if line["kind"] == "size"}
    ranks = [line for line in lines if line["kind"] == "rank"]
    assert sizes[0]["stored"] == sizes[0]["trainable"] == sizes[0]["dense"] == result["dense"]
    assert result["switch_step"] == 4
    assert {line["form"] for line in ranks if line["step"] < 4} == {"dense"}
    assert result["trainable"] == sizes[TOTAL_STEPS]["trainable"] < result["dense"]
    assert result["stored_folded"] < result["stored"]
    layers = {line["layer"] for line in ranks}
    for layer in layers:
        history = [line["rank"] for line in ranks if line["layer"] == layer]
        assert history == sorted(history, reverse=True)
        assert all(line["rank"] <= line["full_rank"] for line in ranks)
    times = [line["step_ms"] for line in lines if line["kind"] == "step"]
    assert result["step_ms_dense_phase"] == statistics.median(times[:4])
    assert result["step_ms_final"] == statistics.median(times[-2:])
    events = [line for line in lines if line["kind"] == "event"]
    assert {event["event"] for event in events} >= {"switch", "update"}


@pytest.mark.parametrize("at", [[4, 9], pytest.param([2, 5, 15], marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, variant, at):
    assert_goes_on(partial(train_here, name=variant), tmp_path, at=at)


def test_a_kill_between_the_last_checkpoint_and_the_result(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = train_here(whole)
    train_here(killed)
    SeedFolder(killed).result.unlink()
    assert without_times([train_here(killed)]) == without_times([expected])


def test_the_test_part_is_read_once_after_the_last_step(tmp_path):
    data = tiny_data()
    with pytest.raises(Killed):
        train_here(tmp_path, data=data, on_progress=KillAt(TOTAL_STEPS, stage="evaluated"))
    assert data.read_test.reads == 0
    result = train_here(tmp_path, data=data)
    assert data.read_test.reads == 1
    assert 0 <= result["test_accuracy"] <= 1


def test_the_test_part_is_not_read_while_settings_are_chosen(tmp_path):
    data = tiny_data()
    result = train_here(tmp_path, data=data, read_test=False)
    assert data.read_test.reads == 0
    assert result["test_accuracy"] is None


def test_seeds_share_nothing_and_variants_share_start_and_batches():
    data = tiny_data()
    starts = {
        (name, seed): trainer_of(name, seed, data=data)
        for name in (DENSE, PAPER)
        for seed in (0, 1)
    }
    same = [starts[DENSE, 0], starts[PAPER, 0]]
    other = starts[DENSE, 1]
    assert_same_bits(*(s.model.state_dict() for s in same))
    assert not torch.equal(other.model.head.weight, same[0].model.head.weight)
    batches = [s.batches.next_batch()[0] for s in (*same, other)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_global_random_state_is_left_as_it_was_by_the_steps(tmp_path):
    states = []
    train_here(tmp_path, on_progress=lambda progress: states.append(torch.get_rng_state()))
    assert all(torch.equal(state, states[0]) for state in states)


def test_evaluate_is_exact_over_uneven_batches(monkeypatch):
    model = trainer_of().model
    split = split_of(15, 3)
    monkeypatch.setattr("orthotrain.lab.experiments.classifier.trainer._EVALUATION_BATCH", 4)
    result = evaluate(model, split)
    with torch.no_grad():
        scores = model(split.images)
    loss = torch.nn.functional.cross_entropy(scores.double(), split.labels)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.accuracy == (scores.argmax(1) == split.labels).double().mean().item()
    assert model.training


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path):
    data = tiny_data()
    data.train.images[:] = math.inf
    with pytest.raises(
        NonFiniteError,
        match=r"loss .* is nan at step 1, learning rate .*; nothing of it was saved; .*--optim\.lr",
    ):
        train_here(tmp_path, data=data)
    assert not SeedFolder(tmp_path).result.exists()


@pytest.mark.bad_input
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(tmp_path, monkeypatch):
    whole, full = tmp_path / "whole", tmp_path / "full"
    expected = train_here(whole)
    replace_file = record.os.replace
    done = []

    def replace_once(source, target):
        if done:
            raise OSError(28, "No space left on device")
        done.append(target)
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(record.os, "replace", replace_once)
        with pytest.raises(CheckpointError, match=r"No space left .* last good checkpoint"):
            train_here(full)
    assert load_checkpoint(SeedFolder(full).checkpoint)["training"]["step"] == 4
    assert not list(full.glob("*.tmp"))
    assert without_times([train_here(full)]) == without_times([expected])


def test_label_smoothing_and_clipping_change_the_run(tmp_path):
    losses = []
    for i, changes in enumerate(({}, {"label_smoothing": 0.3}, {"clip_norm": 1e-3})):
        config = replace(CONFIG, optim=replace(CONFIG.optim, **changes))
        losses.append(train_here(tmp_path / str(i), config=config)["validation_loss"])
    assert len(set(losses)) == 3
