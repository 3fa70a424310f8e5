"""The loop of timm's script needs no code of ours. timm is not installed with the tests."""

import pytest
import torch
from torch.nn import functional as F

timm = pytest.importorskip("timm", exc_type=ImportError)

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

import orthotrain  # noqa: E402
from orthotrain import AdaptiveLowRank  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 6


def loop(name, *, resume=None, save=None, **settings):
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=4, **size)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, **settings)
    ema = ModelEmaV3(model, decay=0.9)
    handle = orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=STEPS)
    handle.track(ema.module)
    parts = {"model": model, "optimizer": optimizer, "ema": ema.module, "handle": handle}
    if resume is not None:
        for key, part in parts.items():
            part.load_state_dict(resume[key])
    for i in range(handle.run.step, STEPS):
        torch.manual_seed(i)  # of dropped paths
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
        ema.update(model, step=i)
        if i + 1 == save:
            saved = {key: part.state_dict() for key, part in parts.items()}
            torch.save(saved, "state.pt")
    return model, ema.module, handle


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet18", {}), ("vit_tiny_patch16_224", {"layer_decay": 0.7, "weight_decay": 0.05})],
    ids=["resnet", "vit with layer decay"],
)
@pytest.mark.parametrize("at", [2, 4], ids=["before the cut", "after the cut"])
def test_a_resumed_run_and_its_average_equal_the_unbroken_one(
    tmp_path, monkeypatch, name, settings, at
):
    monkeypatch.chdir(tmp_path)
    *whole, handle = loop(name, save=at, **settings)
    total = handle.summary().total
    assert total.stored < total.dense
    *resumed, _ = loop(name, resume=torch.load("state.pt", weights_only=True), **settings)
    for one, other in zip(whole, resumed, strict=True):
        one, other = one.state_dict(), other.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
