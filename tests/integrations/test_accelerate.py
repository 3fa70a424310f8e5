"""A loop of Accelerate needs no code of ours: attach, register the handle, save, resume."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

accelerate = pytest.importorskip("accelerate")

import orthotrain  # noqa: E402
from integrations.exported import assert_exports  # noqa: E402
from orthotrain import AdaptiveLowRank  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Accelerate's own
STEPS = 8
SAVED = (3, 6)  # before the cut, which is after step 4, and after it


def loop(folder, *, before, resume=None, accumulate=1, rank=0, compiled=False, **settings):
    """The loop of the users' page, with an average; saves after step 3 and after step 6."""
    accelerate.state.AcceleratorState._reset_state()  # one precision per process otherwise
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )
    rate = torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=rate)
    if compiled:
        model = torch.compile(model, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=accumulate, **settings
    )
    if before:
        handle = orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=STEPS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if not before:
        handle = orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=STEPS)
    handle.track(average)
    accelerator.register_for_checkpointing(handle, average)
    if resume is not None:
        accelerator.load_state(folder / f"{resume}")
    for i in range(handle.run.step * accumulate, STEPS * accumulate):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(i + 100 * rank))
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.update_parameters(accelerator.unwrap_model(model, keep_torch_compile=False))
            if resume is None and handle.run.step in SAVED:
                accelerator.save_state(folder / f"{handle.run.step}", safe_serialization=True)
    return accelerator.unwrap_model(model, keep_torch_compile=False), average.module, handle


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


LOOPS = {
    "plain": {},
    "accumulation": {"accumulate": 2},
    "bf16": {"mixed_precision": "bf16"},
    "compiled": {"compiled": True},
}


@pytest.mark.parametrize("before", [True, False], ids=["attached before", "attached after"])
@pytest.mark.parametrize("settings", LOOPS.values(), ids=LOOPS)
def test_resumed_runs_and_their_averages_equal_the_unbroken_one(tmp_path, before, settings):
    whole, average, handle = loop(tmp_path, before=before, **settings)
    total = handle.summary().total
    assert total.stored < total.dense
    assert average.state_dict().keys() == whole.state_dict().keys()
    assert not equal(average, whole)
    for at in SAVED:
        resumed, other, _ = loop(tmp_path, before=before, resume=at, **settings)
        assert equal(whole, resumed)
        assert equal(average, other)


def test_the_best_state_is_loaded_at_the_end_whatever_its_form(tmp_path):
    """As scripts do it: ``load_state`` of another step, into the model that was trained on."""
    loop(tmp_path, before=True)
    dense, low_rank = (tmp_path / f"{at}" / "model.safetensors" for at in SAVED)
    model, _, handle = loop(tmp_path, before=True)
    for path, form in ((dense, "weight"), (low_rank, "pair")):
        state = accelerate.utils.load_state_dict(str(path))
        model.load_state_dict(state)
        assert any(form in name for name in state)
        assert set(state) == set(model.state_dict())
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert handle.attached


@pytest.mark.slow
def test_the_trained_model_is_exported(tmp_path):
    model, _, _ = loop(tmp_path, before=False)
    assert_exports(model, torch.randn(4, 12))
