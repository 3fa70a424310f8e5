from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from lab.experiments.forecasting.tiny import CONFIG, stretch, tiny_series, train_here, trainer_of
from lab.run.tiny import KillAt, Killed, assert_goes_on, assert_same_bits
from orthotrain.cli.parser import parse_run
from orthotrain.data.ett import SeriesData
from orthotrain.errors import DataError
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.forecasting.best import BestModel
from orthotrain.lab.experiments.forecasting.trainer import errors
from orthotrain.lab.run.record import SeedFolder, read_json, read_metrics
from orthotrain.lab.run.restore import read_network

STEPS = CONFIG.optim.steps
OWN = CONFIG.own["dense-regularised"]


def looks_of(folder):
    lines = read_metrics(SeedFolder(folder).metrics)
    return {line["step"]: line["mse"] for line in lines if line["kind"] == "eval"}


def test_a_training_learns_and_reports_its_best_model(tmp_path):
    data = tiny_series()
    result = train_here(tmp_path, data=data)
    looks = looks_of(tmp_path)
    assert result["best_step"] == min(looks, key=looks.get)
    assert result["best_of_looks"] == len(looks) == STEPS // 6
    assert min(looks.values()) < 0.8 * looks[6]
    assert data.read_test.reads == 1
    assert result["test_mae"] ** 2 <= result["test_mse"]
    assert read_json(SeedFolder(tmp_path).result)["data_sha256"] == "cd" * 32


def test_the_test_part_is_read_once_after_the_last_step(tmp_path):
    data = tiny_series()
    with pytest.raises(Killed):
        train_here(tmp_path, data=data, on_progress=KillAt(STEPS, stage="evaluated"))
    assert data.read_test.reads == 0
    assert train_here(tmp_path, data=data, read_test=False)["test_mse"] is None
    assert data.read_test.reads == 0


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("dense", [13]),
        pytest.param("dense-regularised", [13], marks=pytest.mark.slow),
        pytest.param("half-50", [15], marks=pytest.mark.slow),
        pytest.param("oialr-4", [9], marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, name, steps):
    assert_goes_on(partial(train_here, name=name), tmp_path, at=steps)


def test_dropout_draws_from_seed_and_step_alone():
    first, second = trainer_of("dense-regularised"), trainer_of("dense-regularised")
    torch.rand(3)  # whatever else has drawn
    before = torch.get_rng_state()
    one = first.step().values["loss"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(one, second.step().values["loss"])
    off = replace(CONFIG, own={"dense-regularised": {**OWN, "model.dropout": 0.0}})
    assert not torch.equal(one, trainer_of("dense-regularised", config=off).step().values["loss"])


def test_a_regularised_network_differs_in_decay_and_dropout_alone():
    plain, regular = trainer_of(), trainer_of("dense-regularised")
    assert_same_bits(plain.model.state_dict(), regular.model.state_dict())
    assert regular.settings["weight_decay"] == OWN["optim.weight_decay"]
    rates = {m.p for m in regular.model.modules() if isinstance(m, nn.Dropout)}
    assert rates == {OWN["model.dropout"]}


@pytest.mark.slow
def test_stronger_thresholds_train_less(tmp_path):
    trained = [train_here(tmp_path / str(i), name=f"oialr-{i}")["trainable"] for i in (1, 4)]
    assert trained[1] < 0.8 * trained[0]
    # A finished training is found again, low-rank as it was.
    again = read_network(SeedFolder(tmp_path / "4").checkpoint)
    assert any("core" in name for name in again.state_dict())


def test_errors_are_means_over_windows_steps_and_series():
    class Naive(nn.Module):
        def forward(self, past, dates):
            return past[:, -1:].expand(-1, 4, -1)

    part = stretch(60, seed=0)
    starts = torch.tensor([0, 7, 40])
    squares, absolute = [], []
    for start in starts.tolist():
        wrong = part.values[start + 8 : start + 12] - part.values[start + 7]
        squares.append(wrong.double().square().mean().item())
        absolute.append(wrong.double().abs().mean().item())
    found = errors(Naive(), part, starts, read=8, ahead=4)
    assert found == pytest.approx((sum(squares) / 3, sum(absolute) / 3))


def test_a_model_of_another_structure_is_no_longer_the_best():
    model = nn.Sequential(nn.Linear(4, 4))
    best = BestModel(model)
    best.looked(1.0, step=1)
    best.looked(2.0, step=2)
    assert (best.loss, best.step, best.looks) == (1.0, 1, 2)
    model[0] = nn.Linear(4, 3)
    best.looked(3.0, step=3)
    assert (best.loss, best.step, best.model()[0].out_features) == (3.0, 3, 3)
    assert best.looks == 1  # the published rule may leave few to choose from, so a page says it
    again = BestModel(nn.Sequential(nn.Linear(4, 3)))
    again.load_state_dict(best.state_dict())
    assert again.looks == 1
    assert_same_bits(again.model().state_dict(), best.model().state_dict())


def test_the_longest_forecast_of_the_papers_is_a_setting():
    line = ["ettm2-autoformer", "--scale", "smoke", "--model.ahead", "720"]
    config = parse_run("train", line).config
    assert replace(config.model, ahead=12) == recipe_config("ettm2-autoformer", "smoke").model
    config = replace(config, data=replace(config.data, every=20))
    parts = [stretch(time, seed=0) for time in (800, 780, 780)]
    data = SeriesData(("A", "OT"), parts[0], parts[1], lambda: parts[2], "cd" * 32)
    trainer = trainer_of(config=config, data=data)
    assert trainer.step().values["loss"].isfinite()
    result = trainer.measured(read_test=True)
    assert result["ahead"] == 720
    assert result["test_mse"] > 0


@pytest.mark.bad_input
def test_series_too_short_for_the_windows_are_named_before_the_first_step():
    config = replace(CONFIG, model=replace(CONFIG.model, ahead=120))
    with pytest.raises(DataError, match="a part of 80 steps is too short for windows that read 24"):
        trainer_of(config=config)
