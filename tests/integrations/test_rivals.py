"""LoRA by the layers of PEFT, among the rivals."""

from functools import partial

import pytest
import torch

pytest.importorskip("peft")

from lab.experiments.language.tiny import tiny_text
from lab.experiments.rivals.tiny import CONFIG, STEPS, train_here, trainer_of
from lab.run.tiny import assert_goes_on
from orthotrain.lab.experiments.rivals.peft_adapters import put_adapters
from orthotrain.lab.experiments.rivals.variants import rival_variants
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.restore import read_network

pytestmark = pytest.mark.filterwarnings("ignore")  # of deprecated names of Transformers


def stepped(trainer, count):
    for _ in range(count):
        list(trainer.step().lines)
    return trainer


def test_it_is_a_rival_where_peft_is_installed():
    assert "lora-peft" in [one.name for one in rival_variants(CONFIG)]


def test_what_peft_draws_leaves_the_global_state_and_is_always_the_same():
    models = [trainer_of("dense").model for _ in range(2)]
    before = torch.get_rng_state()
    (one, *_), (other, *_) = (put_adapters(model, rank_fraction=0.25) for model in models)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.a, other.a)


def test_adapters_begin_at_half_of_the_run_and_cost_nothing_before():
    trainer, dense = trainer_of("lora-peft"), trainer_of("dense")
    stepped(trainer, STEPS // 2)
    stepped(dense, STEPS // 2)
    meters = [one.branching.meter for one in (trainer, dense)]
    assert meters[0].operations == meters[1].operations
    up, plain = trainer.model.blocks[0].up, dense.model.blocks[0].up
    assert torch.equal(up.base_layer.weight, plain.weight)
    stepped(trainer, 3)
    assert torch.equal(up.base_layer.weight, plain.weight)
    assert up.lora_B["default"].weight.abs().max() > 0
    total = trainer.handle.summary().total
    assert total.trainable < total.dense < total.stored


def test_a_killed_training_goes_on_bit_for_bit_and_gives_its_network_back(tmp_path):
    assert_goes_on(partial(train_here, name="lora-peft"), tmp_path, at=[16])
    again = read_network(SeedFolder(tmp_path / "whole").checkpoint)
    read = tiny_text().train[None, :16].long()
    trained = stepped(trainer_of("lora-peft"), STEPS)
    torch.testing.assert_close(again(read), trained.model(read))
