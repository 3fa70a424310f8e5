"""A loop of Accelerate needs no code of ours: attach, register the handle, save, resume."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

accelerate = pytest.importorskip("accelerate")

import orthotrain  # noqa: E402
from orthotrain import AdaptiveLowRank  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Accelerate's own
STEPS = 8


def loop(tmp_path, *, before, resume=None, until=STEPS, accumulate=1, rank=0):
    """The loop of the users' page; saves after step 3 and after step 6, the cut is after 4."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    if before:
        handle = orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=STEPS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if not before:
        handle = orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=STEPS)
    accelerator.register_for_checkpointing(handle)
    if resume is not None:
        accelerator.load_state(tmp_path / f"{resume}")
    for i in range(handle.run.step * accumulate, until * accumulate):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(i + 100 * rank))
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if resume is None and accelerator.sync_gradients and handle.run.step in (3, 6):
            accelerator.save_state(tmp_path / f"{handle.run.step}", safe_serialization=True)
    return accelerator.unwrap_model(model), handle


@pytest.mark.parametrize("before", [True, False], ids=["attached before", "attached after"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [3, 6], ids=["before the cut", "after the cut"])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, before, accumulate, at):
    whole, handle = loop(tmp_path, before=before, accumulate=accumulate)
    total = handle.summary().total
    assert total.stored < total.dense
    resumed, _ = loop(tmp_path, before=before, resume=at, accumulate=accumulate)
    one, other = whole.state_dict(), resumed.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
