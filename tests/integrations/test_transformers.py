"""The callback in a real ``Trainer``: resumed runs equal unbroken ones, and nothing is lost."""

import json
import shutil

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import orthotrain  # noqa: E402
from integrations.exported import assert_exports  # noqa: E402
from integrations.hidden import Hidden  # noqa: E402
from orthotrain import AdaptiveLowRank, BasisStability  # noqa: E402
from orthotrain.errors import CheckpointError, ConfigError  # noqa: E402
from orthotrain.integrations.transformers import STATE_FILE, OrthotrainCallback  # noqa: E402

STEPS, EVERY, BATCH = 12, 4, 4


def gpt():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=8, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0, loss_type="ForCausalLMLoss", resid_pdrop=0.1, attn_pdrop=0, embd_pdrop=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def vit():
    """Its weights have other names in Transformers' files than in the model."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        image_size=8, patch_size=4, num_labels=4,
    )  # fmt: skip
    return ViTForImageClassification(config)


class Examples(torch.utils.data.Dataset):
    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 40

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        if self.kind is gpt:
            x = torch.randint(32, (8,), generator=generator)
            return {"input_ids": x, "labels": x}
        return {"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 4}


def trainer(folder, make=gpt, *, callback=None, callbacks=(), model=None, **settings):
    settings = {
        "max_steps": STEPS, "save_steps": EVERY, "logging_steps": 1, "learning_rate": 1e-2,
        "per_device_train_batch_size": BATCH, "report_to": "none", "use_cpu": True, "seed": 0,
        "disable_tqdm": True,
    } | settings  # fmt: skip
    callback = OrthotrainCallback(AdaptiveLowRank()) if callback is None else callback
    made = Trainer(
        make() if model is None else model,
        TrainingArguments(str(folder), **settings),
        train_dataset=Examples(make),
        eval_dataset=Examples(make),
        callbacks=[callback, *callbacks],
    )
    return made, callback


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


LOOPS = {
    "plain": {},
    "accumulation, bf16, checkpointing": {
        "gradient_accumulation_steps": 2, "bf16": True, "activation_checkpointing": True,
    },
    "sgd": {"optim": "sgd"},
    "clipping, cosine": {"max_grad_norm": 0.1, "lr_scheduler_type": "cosine"},
}  # fmt: skip


@pytest.mark.parametrize("settings", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("make", [gpt, vit])
@pytest.mark.parametrize("at", [EVERY, 2 * EVERY], ids=["before the cut", "after the cut"])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, make, settings, at):
    whole, callback = trainer(tmp_path, make, **settings)
    whole.train()
    assert callback.handle.summary().total.stored < callback.handle.summary().total.dense
    for folder in tmp_path.glob("checkpoint-*"):
        if folder.name != f"checkpoint-{at}":
            shutil.rmtree(folder)
    resumed, other = trainer(tmp_path, make, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert equal(whole.model, resumed.model)
    assert str(other.handle.summary()) == str(callback.handle.summary())


@pytest.mark.parametrize("bases", ["trained", "frozen"])
@pytest.mark.parametrize("make", [gpt, vit])
@pytest.mark.parametrize("at", [EVERY, 2 * EVERY], ids=["before the cut", "after the cut"])
def test_a_resumed_run_of_models_that_train_makes_itself(tmp_path, make, at, bases):
    def made_anew():
        callback = OrthotrainCallback(AdaptiveLowRank(bases=bases))
        made, _ = trainer(tmp_path, make, callback=callback)
        return Trainer(
            model_init=make, args=made.args, train_dataset=Examples(make),
            callbacks=[OrthotrainCallback(AdaptiveLowRank(bases=bases))],
        )  # fmt: skip

    whole = made_anew()
    whole.train()
    for folder in tmp_path.glob("checkpoint-*"):
        if folder.name != f"checkpoint-{at}":
            shutil.rmtree(folder)
    resumed = made_anew()
    resumed.train(resume_from_checkpoint=True)
    assert equal(whole.model, resumed.model)


def test_a_checkpoint_elsewhere_is_named(tmp_path):
    whole, _ = trainer(tmp_path / "first")
    whole.train()
    folder = tmp_path / "first" / f"checkpoint-{EVERY}"
    resumed, _ = trainer(tmp_path / "second")
    with pytest.raises(CheckpointError, match=r"resume_from=\.\.\."):
        resumed.train(resume_from_checkpoint=str(folder))
    named = OrthotrainCallback(AdaptiveLowRank(), resume_from=folder)
    resumed, _ = trainer(tmp_path / "second", callback=named)
    resumed.train(resume_from_checkpoint=str(folder))
    assert equal(whole.model, resumed.model)


class Logger(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_sizes_and_ranks_reach_loggers_that_come_first(tmp_path):
    made, callback = trainer(tmp_path)
    before = Logger()
    Trainer(
        gpt(), made.args, train_dataset=Examples(gpt),
        callbacks=[before, OrthotrainCallback(AdaptiveLowRank())],
    ).train()  # fmt: skip
    steps = [logs for logs in before.seen if "loss" in logs]
    stored = [logs["orthotrain/stored"] for logs in steps]
    assert stored[:5] == [1.0] * 5  # cut after 6, one layer after the other
    assert stored == sorted(stored, reverse=True)
    assert stored[-1] <= 0.5
    assert steps[-1]["orthotrain/rank_least"] >= 1
    made.train()
    history = [entry for entry in made.state.log_history if "loss" in entry]
    total = callback.handle.summary().total
    assert history[-1]["orthotrain/stored"] == total.stored / total.dense


def test_every_loss_is_observed_once(tmp_path, monkeypatch):
    made, _ = trainer(tmp_path)
    seen = []
    monkeypatch.setattr(
        "orthotrain.lowrank.guard.LossGuard.observe", lambda self, loss: seen.append(loss)
    )
    made.train()
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert seen == pytest.approx(logged)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and Transformers, while they trace
def test_a_compiled_model_trains_and_its_logged_loss_is_observed(tmp_path, monkeypatch):
    made, _ = trainer(tmp_path, torch_compile=True, torch_compile_backend="eager")
    seen = []
    monkeypatch.setattr(
        "orthotrain.lowrank.guard.LossGuard.observe", lambda self, loss: seen.append(loss)
    )
    with torch._dynamo.config.patch(recompile_limit=16):
        made.train()
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert seen == pytest.approx(logged)


@pytest.mark.parametrize("make", [gpt, vit])
def test_the_best_model_is_loaded_at_the_end(tmp_path, make):
    made, _ = trainer(
        tmp_path, make, eval_strategy="steps", eval_steps=EVERY, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    made.train()
    best = made.state.best_metric
    assert made.state.best_model_checkpoint is not None
    assert made.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_a_second_train_starts_anew_and_a_new_model_for_each(tmp_path):
    made, callback = trainer(tmp_path)
    made.train()
    first = callback.handle
    made.optimizer = made.lr_scheduler = None
    made.train()
    assert callback.handle is not first
    assert not first.attached
    assert not callback.handle.attached
    assert callback.handle.run.step == STEPS


@pytest.mark.slow
# It goes on with the model as it is, so the schedule starts over on layers that were cut.
@pytest.mark.filterwarnings("ignore:AdaptiveLowRank starts anew")
@pytest.mark.parametrize("calls", [0, 9], ids=["at once", "after the cut"])
def test_a_smaller_batch_is_found_and_training_starts_again(tmp_path, calls):
    made, callback = trainer(tmp_path, auto_find_batch_size=True)
    handles, seen = [], []

    def runs_out(model, args, kwargs):
        seen.append(len(kwargs["input_ids"]))
        if callback.handle not in handles:
            handles.append(callback.handle)
        if seen[-1] > BATCH // 2 and len(seen) > calls:
            raise RuntimeError("CUDA out of memory.")

    made.model.register_forward_pre_hook(runs_out, with_kwargs=True)
    made.train()
    first, *others, last = handles  # it goes down by a tenth at a time
    assert not any(handle.attached for handle in (first, *others))
    assert last is callback.handle
    assert last.run.step == STEPS
    assert seen[-STEPS:] == STEPS * [BATCH // 2]
    assert last.summary().total.stored <= 0.5 * last.summary().total.dense
    assert len(last.summary().rows) == len(first.summary().rows)


def test_an_average_of_the_users_own_follows(tmp_path):
    class Average(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            rate = torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
            self.model = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=rate)
            callback.handle.track(self.model)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.model.update_parameters(model)

    average = Average()
    callback = OrthotrainCallback(AdaptiveLowRank())
    made, _ = trainer(tmp_path, callback=callback, callbacks=[average])
    made.train()
    twin = average.model.module
    assert twin.state_dict().keys() == made.model.state_dict().keys()
    assert not equal(twin, made.model)
    live = made.evaluate()["eval_loss"]
    made.model.load_state_dict(twin.state_dict())
    assert made.evaluate()["eval_loss"] == pytest.approx(live, rel=0.2)


def test_nothing_else_changes_in_the_run(tmp_path):
    made, _ = trainer(tmp_path / "ours", callback=OrthotrainCallback(BasisStability(every_steps=4)))
    made.train()
    plain = Trainer(gpt(), made.args, train_dataset=Examples(gpt))
    plain.train()
    assert equal(made.model, plain.model)


@pytest.mark.bad_input
def test_two_callbacks_on_one_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="give all methods to one callback"):
        trainer(tmp_path, callbacks=[OrthotrainCallback(BasisStability(every_steps=4))])

    made, _ = trainer(tmp_path)
    made.add_callback(OrthotrainCallback(BasisStability(every_steps=4)))
    with pytest.raises(ConfigError, match="give all methods to one callback"):
        made.train()


class Logits(torch.nn.Module):
    """What is exported of a model whose output is a mapping."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and Transformers, while they trace
def test_the_trained_model_is_exported(tmp_path):
    made, _ = trainer(tmp_path, vit)
    made.train()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_exports(Logits(made.model), x)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")  # torch's, of its own scheduler
def test_an_optimizer_whose_inner_one_cannot_be_found_is_refused(tmp_path):
    model = gpt()
    optimizer = Hidden(model.parameters())
    made = Trainer(
        model, trainer(tmp_path)[0].args, train_dataset=Examples(gpt),
        callbacks=[OrthotrainCallback(AdaptiveLowRank())],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"Hidden does not fire torch's hooks .*; call"):
        made.train()


@pytest.mark.bad_input
def test_no_method_is_refused():
    with pytest.raises(ConfigError, match="at least one method"):
        OrthotrainCallback()


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["missing", "cut", "another run", "another model"])
def test_a_state_that_does_not_belong_is_refused(tmp_path, damage):
    made, _ = trainer(tmp_path)
    made.train()
    folder = tmp_path / f"checkpoint-{2 * EVERY}"
    path = folder / STATE_FILE
    callback = OrthotrainCallback(AdaptiveLowRank(), resume_from=folder)
    match = damage
    if damage == "missing":
        path.unlink()
        match = "is not there"
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
        match = "is damaged"
    elif damage == "another run":
        history = json.loads((folder / "trainer_state.json").read_text())
        history["log_history"][0]["loss"] += 1
        (folder / "trainer_state.json").write_text(json.dumps(history))
        match = "belongs to another run"
    else:
        callback = OrthotrainCallback(BasisStability(every_steps=4), resume_from=folder)
        match = "attach the methods the state was saved with"
    resumed, _ = trainer(tmp_path, callback=callback)
    with pytest.raises(Exception, match=match):
        resumed.train(resume_from_checkpoint=str(folder))


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [gpt, vit])
def test_a_checkpoint_of_a_run_without_the_callback_is_refused(tmp_path, make):
    """The schedule would start over on a model that is cut already."""
    model = make()
    orthotrain.compress(model, stored_budget=0.5)
    made, _ = trainer(tmp_path, make, model=model)
    made.callback_handler.callbacks = [
        each for each in made.callback_handler.callbacks
        if not isinstance(each, OrthotrainCallback)
    ]  # fmt: skip
    made.train()
    resumed, _ = trainer(tmp_path, make)
    with pytest.raises(CheckpointError, match="would start over"):
        resumed.train(resume_from_checkpoint=True)
