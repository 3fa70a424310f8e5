"""The loop of timm's script needs no code of ours. timm is not installed with the tests."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

timm = pytest.importorskip("timm", exc_type=ImportError)

from timm.optim import Lookahead, create_optimizer_v2  # noqa: E402
from timm.utils import CheckpointSaver, ModelEmaV3  # noqa: E402

import orthotrain  # noqa: E402
from integrations.exported import assert_exports  # noqa: E402
from methods.wrappers import SAM  # noqa: E402
from orthotrain import AdaptiveLowRank  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 6
SAVED = (2, 4)  # before the cut, which is after step 3, and after it
NETS = {
    "resnet": ("resnet18", {"channels": (32, 64, 96, 128)}),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3},
    ),
}


def optimizer_of(model, kind):
    if kind == "sam":
        return SAM(model.parameters(), torch.optim.AdamW, lr=1e-3)
    return create_optimizer_v2(model, opt=kind, lr=1e-3, weight_decay=0.05, layer_decay=0.7)


def loop(
    folder, net, *, resume=None, opt="adamw", accumulate=1, bf16=False, compiled=False, rank=None
):
    """The loop of the users' page; ``rank`` wraps the model for two processes."""
    torch.manual_seed(0)
    name, size = NETS[net]
    model = whole = timm.create_model(name, num_classes=4, **size)
    optimizer = optimizer_of(model, opt)
    ema = ModelEmaV3(model, decay=0.9)
    if compiled:
        whole = torch.compile(model, backend="eager")
    if rank is not None:
        whole = DistributedDataParallel(model)
    handle = orthotrain.attach(whole, optimizer, AdaptiveLowRank(), total_steps=STEPS)
    handle.track(ema.module)
    # The state of SAM leaves out that of the optimizer inside.
    steps = optimizer.base_optimizer if opt == "sam" else optimizer
    parts = {"model": model, "optimizer": steps, "ema": ema.module, "handle": handle}
    if resume is not None:
        saved = torch.load(folder / f"{resume}.pt", weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved[key])
    for i in range(handle.run.step, STEPS):
        torch.manual_seed(i)  # of dropped paths
        data = torch.Generator().manual_seed(i + 100 * (rank or 0))
        batches = [torch.randn(4, 3, 32, 32, generator=data) for _ in range(accumulate)]

        def passes(batches=batches):
            for x in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = F.cross_entropy(whole(x), torch.arange(4)) / accumulate
                loss.backward()

        optimizer.zero_grad()
        passes()
        optimizer.step(passes) if opt == "sam" else optimizer.step()
        ema.update(model, step=i)
        if resume is None and i + 1 in SAVED and not rank:
            saved = {key: part.state_dict() for key, part in parts.items()}
            torch.save(saved, folder / f"{i + 1}.pt")
    return model, ema.module, handle, optimizer


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


LOOPS = {
    "vit with layer decay": ("vit", {}),
    "accumulation": ("vit", {"accumulate": 2}),
    "bf16": ("vit", {"bf16": True}),
    "Lookahead": ("vit", {"opt": "lookahead_adamw"}),
    "SAM": ("vit", {"opt": "sam"}),
}
SLOW = [
    pytest.param("resnet", {}, marks=pytest.mark.slow, id="resnet"),
    pytest.param("vit", {"compiled": True}, marks=pytest.mark.slow, id="compiled"),
]


@pytest.mark.parametrize(
    ("net", "settings"), [*(pytest.param(*loop, id=name) for name, loop in LOOPS.items()), *SLOW]
)
def test_resumed_runs_and_their_averages_equal_the_unbroken_one(tmp_path, net, settings):
    *whole, handle, optimizer = loop(tmp_path, net, **settings)
    total = handle.summary().total
    assert total.stored < total.dense
    assert handle.run.step == STEPS
    # Both wrap the optimizer that steps, under names of their own.
    inner = {"lookahead_adamw": "_base_optimizer", "sam": "base_optimizer"}.get(settings.get("opt"))
    assert handle.run.optimizer is (getattr(optimizer, inner) if inner else optimizer)
    for at in SAVED:
        *resumed, _, _ = loop(tmp_path, net, resume=at, **settings)
        for one, other in zip(whole, resumed, strict=True):
            assert equal(one, other)


def test_lookahead_keeps_slow_weights_in_the_shape_of_the_factors(tmp_path):
    *_, handle, optimizer = loop(tmp_path, "vit", opt="lookahead_adamw")
    assert isinstance(optimizer, Lookahead)
    optimizer.sync_lookahead()
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert optimizer._base_optimizer.state[p]["lookahead_slow_buff"].shape == p.shape
    assert handle.attached


@pytest.mark.parametrize("decreasing", [False, True], ids=["dense, early", "low-rank, late"])
def test_the_best_checkpoint_of_timms_saver_is_loaded_into_the_trained_model(tmp_path, decreasing):
    model, ema, _, optimizer = loop(tmp_path, "vit")
    trained = {key: value.clone() for key, value in model.state_dict().items()}
    saver = CheckpointSaver(
        model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
        decreasing=decreasing,
    )  # fmt: skip
    early = torch.load(tmp_path / f"{SAVED[0]}.pt", weights_only=True)["model"]
    for epoch, state in enumerate((early, trained)):
        model.load_state_dict(state)
        saver.save_checkpoint(epoch, metric=1.0 - epoch)
    timm.models.load_checkpoint(model, str(tmp_path / "model_best.pth.tar"), use_ema=False)
    best = trained if decreasing else early
    assert model.state_dict().keys() == best.keys()
    assert all(torch.equal(value, best[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_the_trained_model_is_exported(tmp_path):
    model, ema, _, _ = loop(tmp_path, "vit")
    assert_exports(ema, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert any(isinstance(m, orthotrain.layers.LowRankLinear) for m in model.modules())
