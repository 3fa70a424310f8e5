"""A pretrained model becomes smaller while it learns a task; and what that is beside PEFT."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

import orthotrain  # noqa: E402
from integrations.test_transformers import equal, gpt, vit  # noqa: E402
from orthotrain import AdaptiveLowRank, BasisStability  # noqa: E402
from orthotrain.errors import ConfigError  # noqa: E402
from orthotrain.integrations.transformers import (  # noqa: E402
    OrthotrainCallback,
    from_pretrained,
    save_pretrained,
)

STEPS = 40

peft_warns = pytest.mark.filterwarnings("ignore")  # of deprecated names of Transformers


class Counting(torch.utils.data.Dataset):
    """Sequences that go up by ``step``: one is learned before, another is the new task."""

    def __init__(self, make, step):
        self.make, self.step = make, step

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if self.make is gpt:
            x = (torch.arange(8) * self.step + i) % 32
            return {"input_ids": x, "labels": x}
        generator = torch.Generator().manual_seed(i)
        pixels = torch.randn(3, 8, 8, generator=generator)
        bright = int(pixels[(self.step - 1) % 3, :4].mean() > 0)
        return {"pixel_values": pixels, "labels": bright}


def fitted(folder, model, data, *, callbacks=(), steps=STEPS, rate=1e-2):
    settings = TrainingArguments(
        str(folder), max_steps=steps, learning_rate=rate, per_device_train_batch_size=16,
        report_to="none", use_cpu=True, seed=0, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        model, settings, train_dataset=data, eval_dataset=data, callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Each model after a run on the first task."""
    folder = tmp_path_factory.mktemp("pretrained")
    return {make: fitted(folder, make(), Counting(make, 1)).model for make in (gpt, vit)}


@pytest.mark.parametrize("make", [gpt, vit])
def test_a_pretrained_model_is_cut_at_once_and_learns_the_task(tmp_path, pretrained, make):
    model, task = copy.deepcopy(pretrained[make]), Counting(make, 2)
    before = Trainer(
        copy.deepcopy(model), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
        eval_dataset=task,
    ).evaluate()["eval_loss"]  # fmt: skip
    callback = OrthotrainCallback(AdaptiveLowRank(delay_steps=0))
    tuned = fitted(tmp_path, model, task, callbacks=[callback])
    total = callback.handle.summary().total
    assert total.stored <= 0.5 * total.dense
    switches = [r["step"] for r in callback.handle.records if r.get("event") == "switch"]
    assert 8 <= min(switches) < max(switches)  # after the eight steps that are watched
    plain_cut = orthotrain.compress(copy.deepcopy(pretrained[make]), stored_budget=0.5)
    tuned_after = fitted(tmp_path, plain_cut, task, steps=1, rate=0.0).evaluate()["eval_loss"]
    after = tuned.evaluate()["eval_loss"]
    assert after < 0.5 * min(before, tuned_after)
    save_pretrained(tuned.model, tmp_path / "small")
    assert equal(from_pretrained(type(model), tmp_path / "small"), tuned.model)


def test_a_run_that_is_too_short_to_watch_is_told(tmp_path, pretrained):
    callback = OrthotrainCallback(AdaptiveLowRank(delay_steps=0))
    with pytest.raises(ConfigError, match="switches after step 8 at the earliest"):
        fitted(
            tmp_path,
            copy.deepcopy(pretrained[gpt]),
            Counting(gpt, 2),
            callbacks=[callback],
            steps=6,
        )


# --- beside PEFT ----------------------------------------------------------------------------------


def adapted(model, *targets, **settings):
    peft = pytest.importorskip("peft")
    conv = {"fan_in_fan_out": True} if isinstance(model, GPT2LMHeadModel) else {}
    config = peft.LoraConfig(
        r=4, target_modules=list(targets), init_lora_weights=False, **conv, **settings
    )
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


def trained_parts(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def logits(model):
    if hasattr(model.config, "image_size"):
        return model(pixel_values=torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)).logits
    return model(input_ids=torch.arange(16).reshape(2, 8)).logits


def cut_while_it_trains(model):
    method = AdaptiveLowRank(energy=0.9, delay_steps=0)
    return orthotrain.attach(model, trained_parts(model), method, total_steps=20)


@peft_warns
@pytest.mark.bad_input
@pytest.mark.parametrize(
    "cut", [cut_while_it_trains, lambda model: orthotrain.compress(model, energy=0.9)],
    ids=["attach", "compress"],
)  # fmt: skip
def test_adapters_and_what_they_are_on_are_refused_by_name(pretrained, cut):
    tuned = adapted(pretrained[gpt], "c_attn", "c_fc", "c_proj")
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    with pytest.raises(ConfigError, match=r"base_layer: has adapters.*merge_and_unload\(\) first"):
        cut(tuned)
    with pytest.raises(ConfigError, match=r"lora_A.default: an adapter of PEFT, low-rank as it is"):
        cut(tuned)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


@peft_warns
def test_what_is_trained_as_a_whole_beside_adapters_is_cut(pretrained):
    tuned = adapted(pretrained[gpt], "c_attn", modules_to_save=["mlp"])
    handle = cut_while_it_trains(tuned)
    names = {row.name.split("modules_to_save.default.")[-1] for row in handle.summary().rows}
    assert names == {"c_fc", "c_proj"}
    notes = " ".join(handle.summary().notes)
    assert "an adapter of PEFT" in notes
    assert "merge_and_unload() first" in notes


@peft_warns
def test_merged_adapters_first_then_the_cut(tmp_path, pretrained):
    tuned = adapted(pretrained[gpt], "c_attn", "c_fc", "c_proj")
    expected = logits(tuned)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    merged.requires_grad_(True)  # PEFT has frozen it
    task, callback = Counting(gpt, 2), OrthotrainCallback(AdaptiveLowRank(delay_steps=0))
    after = fitted(tmp_path, merged, task, callbacks=[callback]).evaluate()["eval_loss"]
    assert callback.handle.summary().total.stored <= 0.5 * callback.handle.summary().total.dense
    assert after < 0.5


@peft_warns
def test_adapters_on_a_smaller_base(tmp_path, pretrained):
    """They train, are saved and come back; before they are merged the base becomes dense."""
    peft = pytest.importorskip("peft")
    base = orthotrain.compress(copy.deepcopy(pretrained[vit]), energy=0.9, only_if_cheaper=False)
    tuned = adapted(base, "q_proj", "fc1")
    assert isinstance(
        tuned.base_model.model.vit.layers[0].mlp.fc1.base_layer, orthotrain.layers.LowRankLinear
    )
    frozen = {n: p.clone() for n, p in tuned.named_parameters() if not p.requires_grad}
    optimizer = trained_parts(tuned)
    watch = orthotrain.attach(tuned, optimizer, BasisStability(every_steps=2), total_steps=6)
    for _ in range(6):
        optimizer.zero_grad()
        logits(tuned).square().mean().backward()
        optimizer.step()
    assert any("lora" in record["layer"] for record in watch.records)
    assert all(torch.equal(p, frozen[n]) for n, p in tuned.named_parameters() if n in frozen)
    expected = logits(tuned)
    lost = logits(copy.deepcopy(tuned).merge_and_unload())  # as the page warns
    assert not torch.allclose(lost, expected, atol=1e-2)
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(logits(again), expected)
    merged = orthotrain.to_dense(tuned).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    assert not any("orthotrain" in type(m).__module__ for m in merged.modules())


@peft_warns
@pytest.mark.bad_input
def test_peft_refuses_a_low_rank_conv1d(pretrained):
    base = orthotrain.compress(copy.deepcopy(pretrained[gpt]), stored_budget=0.5)
    with pytest.raises(ValueError, match=r"LowRankTransposedLinear.* is not supported"):
        adapted(base, "c_attn")
