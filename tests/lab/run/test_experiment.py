"""An experiment of a new family: the run around it knows nothing but its trainer."""

import json

import pytest
import torch

from lab.run.tiny import (
    KillAt,
    Killed,
    assert_same_bits,
    assert_same_training,
    without_times,
)
from lab.run.toy import TOY, ToyTrainer
from orthotrain.errors import CheckpointError, ConfigError, NonFiniteError
from orthotrain.lab.named import named
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.record import RunFolder, read_metrics
from orthotrain.lab.run.restore import read_network, read_weights
from orthotrain.lab.run.trainer import Step


def run_here(path, **options):
    config, folder = TOY.at("smoke"), RunFolder(path)
    variants = TOY.chosen(config)
    folder.open(config)
    folder.describe(TOY, config, variants=variants, environment={})
    run_all(Run(TOY.build, config, folder), variants, **options)
    return folder


def test_a_new_family_trains_is_killed_and_goes_on_bit_for_bit(tmp_path):
    whole = run_here(tmp_path / "whole")
    kill = KillAt(6)
    with pytest.raises(Killed):
        run_here(tmp_path / "killed", on_progress=kill)
    kill.step = 0
    seen = []
    killed = run_here(tmp_path / "killed", on_progress=seen.append)
    assert (seen[0].variant, seen[0].stage, seen[0].step) == ("plain", "started", 3)
    for variant in ("plain", "after"):
        assert without_times(whole.results(variant, (0, 1))) == without_times(
            killed.results(variant, (0, 1))
        )
        for seed in (0, 1):
            assert_same_training(whole.seed(variant, seed), killed.seed(variant, seed))


def test_what_is_written_of_it(tmp_path):
    folder = run_here(tmp_path)
    described = json.loads(folder.run.read_text())
    assert (described["recipe"], described["page"], described["baseline"]) == ("toy", "", "plain")
    lines = read_metrics(folder.seed("plain", 0).metrics)
    kinds = {kind: [x["step"] for x in lines if x["kind"] == kind] for kind in ("step", "eval")}
    assert kinds == {"step": [2, 4, 6, 8], "eval": [4, 8]}
    # A method that the recorder does not know has lines of its own, and changes no sizes.
    watched = [line for line in lines if line["kind"] == "watch"]
    assert [line["step"] for line in watched] == list(range(1, 9))
    assert set(watched[0]) == {"kind", "step", "weight"}
    assert {line["kind"] for line in lines} == {"step", "eval", "watch"}
    (result,) = folder.results("plain", (0,))
    assert set(result) == {
        "variant", "seed", "final", "lines", "peak_rss_bytes", "steps", "seconds",
    }  # fmt: skip


def test_a_variant_is_built_from_the_results_that_it_needs(tmp_path):
    folder = run_here(tmp_path)
    rate = sum(abs(one["final"]) for one in folder.results("plain", (0, 1))) / 100
    trainer = ToyTrainer(1.0, rate)
    while trainer.steps < trainer.total_steps:
        trainer.step()
    assert folder.results("after", (0,))[0]["final"] == trainer.model.weight.item()


def test_a_checkpoint_gives_its_network_back(tmp_path):
    path = run_here(tmp_path).seed("plain", 1).checkpoint
    saved = load_checkpoint(path)["training"]["model"]
    assert_same_bits(dict(read_network(path).state_dict()), dict(saved))
    assert_same_bits(read_weights(path), dict(saved))


@pytest.mark.bad_input
def test_a_checkpoint_cannot_call_what_is_not_marked(tmp_path):
    path = tmp_path / "checkpoint.pt"
    network = {"build": "os:remove", "settings": {"path": str(path)}, "weights": "model",
               "prefix": ""}  # fmt: skip
    save_checkpoint(path, {"training": {"model": {}}, "network": network})
    with pytest.raises(CheckpointError, match="os:remove, which is not marked"):
        read_network(path)
    assert path.exists()
    save_checkpoint(path, {"training": {"model": {}}, "network": {**network, "build": "no:way"}})
    with pytest.raises(
        CheckpointError,
        match="names a function that rebuilds its network, and 'no:way' cannot be loaded",
    ):
        read_network(path)
    save_checkpoint(path, {"training": {"model": {}}, "network": {"family": "lowrank"}})
    with pytest.raises(CheckpointError, match="does not say which of its parts holds the weights"):
        read_weights(path)


@pytest.mark.bad_input
def test_a_weight_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    def spoilt(self):
        _step(self)
        if self.steps == 5:
            torch.nn.init.constant_(self.model.weight, torch.inf)
        return Step({"loss": 0.0})  # which tells nothing

    _step = ToyTrainer.step
    monkeypatch.setattr(ToyTrainer, "step", spoilt)
    with pytest.raises(NonFiniteError, match=r"weight of the model in .* is not finite at step 6"):
        run_here(tmp_path)
    assert load_checkpoint(RunFolder(tmp_path).seed("plain", 0).checkpoint)["training"]["step"] == 3


@pytest.mark.bad_input
def test_names_that_lead_nowhere_are_refused():
    for reference in ("no_such_module:X", "orthotrain.errors:Nothing", "", "orthotrain.errors"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            named(reference)
    with pytest.raises(ConfigError, match="has no scale 'full'; choose from smoke"):
        TOY.at("full")


def test_variants_keep_the_order_in_which_each_finds_what_it_needs():
    from dataclasses import replace

    config = replace(TOY.at("smoke"), variants=("after", "plain"))
    assert [variant.name for variant in TOY.chosen(config)] == ["plain", "after"]
    assert TOY.baseline(config) == "plain"
    with pytest.raises(
        ConfigError,
        match="'other' is not a variant; did you mean after\\? choose from plain, after",
    ):
        TOY.chosen(replace(config, variants=("other",)))


@pytest.mark.slow
def test_workers_train_a_new_family_to_the_same_numbers(tmp_path):
    one, two = run_here(tmp_path / "one"), run_here(tmp_path / "two", workers=2)
    for variant in ("plain", "after"):
        results = [without_times(folder.results(variant, (0, 1))) for folder in (one, two)]
        assert results[0] == results[1]
