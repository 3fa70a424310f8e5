"""The callback in a real Lightning ``Trainer``: resumed runs equal unbroken ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger

import orthotrain
from integrations.exported import assert_exports
from integrations.hidden import Hidden
from orthotrain import AdaptiveLowRank, BasisStability
from orthotrain.errors import CheckpointError, ConfigError, StateError
from orthotrain.integrations.lightning import (
    OrthotrainCallback,
    load_from_checkpoint,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own

STEPS, EVERY = 12, 4


class Net(LightningModule):
    def __init__(self, *, compiled=False):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
        )
        self.net = torch.compile(net, backend="eager") if compiled else net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("held_out", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 12, generator=generator)  # Lightning resumes exactly at ends of epochs
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
    # Several processes get parts in order: Lightning's own sampler shuffles a resumed run anew.
    several = torch.distributed.is_initialized()
    sampler = torch.utils.data.DistributedSampler(data, shuffle=False) if several else None
    return torch.utils.data.DataLoader(data, batch_size=4, sampler=sampler)


def fit(folder, *, module=None, callback=None, callbacks=(), resume=None, logger=False, **settings):
    seed_everything(0, verbose=False)
    module = Net() if module is None else module
    callback = OrthotrainCallback(AdaptiveLowRank()) if callback is None else callback
    saving = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_epochs=1)
    trainer = Trainer(
        **{
            "max_steps": STEPS, "accelerator": "cpu", "enable_progress_bar": False,
            "enable_model_summary": False, "logger": logger, "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        } | settings,
        callbacks=[*callbacks, callback, saving],
    )  # fmt: skip
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return module, callback, trainer


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


LOOPS = {
    "plain": {},
    "bf16, accumulation": {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("settings", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("at", [EVERY, 2 * EVERY], ids=["before the cut", "after the cut"])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, settings, compiled, at):
    whole, callback, _ = fit(tmp_path / "a", module=Net(compiled=compiled), **settings)
    total = callback.handle.summary().total
    assert total.stored < total.dense
    resumed, other, _ = fit(
        tmp_path / "b", module=Net(compiled=compiled), resume=tmp_path / "a" / f"step={at}.ckpt",
        **settings,
    )  # fmt: skip
    assert equal(whole, resumed)
    assert str(other.handle.summary()) == str(callback.handle.summary())


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize("at", [EVERY, 2 * EVERY], ids=["before the cut", "after the cut"])
def test_an_average_follows_cuts_and_resumes(tmp_path, first, at):
    def averaging():
        return EMAWeightAveraging(decay=0.8)

    def one(folder, resume=None):
        ours = OrthotrainCallback(AdaptiveLowRank())
        callbacks = [averaging(), ours] if first else [ours, averaging()]
        return fit(folder, callback=callbacks[1], callbacks=callbacks[:1], resume=resume)[0]

    whole = one(tmp_path / "a")
    assert any(isinstance(m, orthotrain.layers.LowRankLinear) for m in whole.modules())
    assert equal(whole, one(tmp_path / "b", tmp_path / "a" / f"step={at}.ckpt"))


def test_a_checkpoint_loads_by_the_function_and_where_the_module_follows(tmp_path):
    whole, _, _ = fit(tmp_path)
    path = tmp_path / f"step={STEPS}.ckpt"
    loaded = load_from_checkpoint(Net, path)
    assert type(loaded) is Net
    assert equal(whole, loaded)

    class Follows(Net):
        def __init__(self):
            super().__init__()
            orthotrain.follow(self)

    assert equal(whole, Follows.load_from_checkpoint(path))
    with pytest.raises(RuntimeError, match="pair"):
        Net.load_from_checkpoint(path)


@pytest.mark.parametrize("mode", ["max", "min"], ids=["dense, early", "low-rank, late"])
def test_the_best_model_is_loaded_at_the_end(tmp_path, mode):
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="held_out", mode=mode)
    module, _, trainer = fit(tmp_path, callbacks=[best])
    low_rank = any(isinstance(m, orthotrain.layers.LowRankLinear) for m in module.modules())
    assert low_rank
    (result,) = trainer.validate(module, loader(), ckpt_path=best.best_model_path, verbose=False)
    assert result["held_out"] == pytest.approx(best.best_model_score.item(), rel=1e-6)
    low_rank = any(isinstance(m, orthotrain.layers.LowRankLinear) for m in module.modules())
    assert low_rank is (mode == "min")


def test_the_best_checkpoint_is_tested(tmp_path):
    module, _, trainer = fit(tmp_path)
    early = Net()
    trainer.validate(early, loader(), ckpt_path=tmp_path / f"step={EVERY}.ckpt", verbose=False)
    assert not any(isinstance(m, orthotrain.layers.LowRankLinear) for m in early.modules())
    trainer.validate(module, loader(), ckpt_path=tmp_path / f"step={EVERY}.ckpt", verbose=False)
    assert equal(module, early)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_loss_is_observed_once_in_its_own_scale(tmp_path, monkeypatch, compiled, accumulate):
    seen, expected = [], []
    monkeypatch.setattr(
        "orthotrain.lowrank.guard.LossGuard.observe", lambda self, loss: seen.append(loss)
    )

    class Tells(Net):
        def training_step(self, batch, i):
            loss = super().training_step(batch, i)
            expected.append(loss.item())
            return loss

    fit(tmp_path, module=Tells(compiled=compiled), accumulate_grad_batches=accumulate, max_steps=4)
    assert seen == pytest.approx(expected)
    assert len(expected) == 4 * accumulate


@pytest.mark.slow
def test_the_trained_model_is_exported(tmp_path):
    module, _, _ = fit(tmp_path)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    assert_exports(module.net, x)


def test_sizes_and_ranks_reach_the_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    _, callback, _ = fit(tmp_path, logger=logger)
    logged = [row for row in logger.experiment.metrics_keys if row.startswith("orthotrain/")]
    assert "orthotrain/stored" in logged
    assert "orthotrain/rank_least" in logged
    assert callback.handle is not None


def test_a_second_fit_starts_anew_and_an_error_detaches(tmp_path):
    module, callback, _ = fit(tmp_path)
    first = callback.handle
    assert not first.attached
    fit(tmp_path, module=module, callback=callback)
    assert callback.handle is not first
    assert callback.handle.run.step == STEPS

    class Fails(Net):
        def training_step(self, batch, i):
            if i == 2:
                raise OSError("gone")
            return super().training_step(batch, i)

    with pytest.raises(OSError, match="gone"):
        fit(tmp_path, module=Fails(), callback=callback)
    assert not callback.handle.attached


def test_nothing_else_changes_in_the_run(tmp_path):
    ours, _, _ = fit(tmp_path / "a", callback=OrthotrainCallback(BasisStability(every_steps=4)))
    seed_everything(0, verbose=False)
    plain = Net()
    Trainer(
        max_steps=STEPS, accelerator="cpu", enable_progress_bar=False, logger=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    ).fit(plain, loader(), loader())  # fmt: skip
    assert equal(ours, plain)


@pytest.mark.bad_input
def test_two_callbacks_no_method_and_a_foreign_checkpoint_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one method"):
        OrthotrainCallback()
    with pytest.raises(RuntimeError, match="more than one stateful callback of type"):
        fit(tmp_path, callbacks=[OrthotrainCallback(BasisStability(every_steps=4))])
    fit(tmp_path, callback=OrthotrainCallback(BasisStability(every_steps=4)))
    with pytest.raises(StateError, match="attach the methods the state was saved with"):
        fit(tmp_path, resume=tmp_path / f"step={EVERY}.ckpt")


@pytest.mark.bad_input
def test_an_optimizer_whose_inner_one_cannot_be_found_and_several_are_refused(tmp_path):
    class Hides(Net):
        def configure_optimizers(self):
            return Hidden(self.parameters())

    with pytest.raises(ConfigError, match=r"Hidden does not fire torch's hooks .*; call"):
        fit(tmp_path, module=Hides())


class ByHand(Net):
    """Two optimizers over parts of the module, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, rest = self.net[0].parameters(), self.net[2:].parameters()
        return torch.optim.AdamW(first, lr=1e-2), torch.optim.SGD(rest, lr=0.1, momentum=0.9)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


@pytest.mark.parametrize("length", [{"max_steps": 2 * STEPS}, {"max_epochs": 3, "max_steps": -1}])
def test_several_optimizers_resume_bit_for_bit(tmp_path, length):
    whole, callback, _ = fit(tmp_path / "a", module=ByHand(), **length)
    assert callback.handle.run.total_steps == callback.handle.run.step == STEPS
    assert callback.handle.summary().total.stored < callback.handle.summary().total.dense
    for at in (EVERY, 2 * EVERY):  # before and after the cut; Lightning counts each optimizer's
        start = tmp_path / "a" / f"step={2 * at}.ckpt"
        resumed, other, _ = fit(tmp_path / "b", module=ByHand(), resume=start, **length)
        assert equal(whole, resumed)
        assert str(other.handle.summary()) == str(callback.handle.summary())


@pytest.mark.bad_input
def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.net[2], self.net[4] = nn.Linear(24, 32), nn.Linear(32, 3)

    class Deeper(Net):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(3, 3)

    for other, said in ((Wider, r"of another shape: .*net\.2\.weight"), (Deeper, "it has more")):
        folder = tmp_path / other.__name__
        fit(folder, module=other())
        for at in (EVERY, 2 * EVERY):  # before and after the cut
            module, path = Net(), folder / f"step={at}.ckpt"
            before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            with pytest.raises(CheckpointError, match=rf"of this Net .*step={at}\..*{said}"):
                fit(tmp_path, module=module, resume=path)
            after = module.state_dict()
            assert after.keys() == before.keys()
            assert all(torch.equal(after[name], before[name]) for name in after)
    fit(tmp_path, module=module)
    with pytest.raises(RuntimeError, match="size mismatch"):  # no more than torch's own afterwards
        module.load_state_dict(Wider().state_dict())


@pytest.mark.bad_input
def test_a_resume_without_the_state_is_refused(tmp_path):
    fit(tmp_path)
    path = tmp_path / f"step={2 * EVERY}.ckpt"
    content = torch.load(path, weights_only=True)
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if "Orth" not in k}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="would start over"):
        fit(tmp_path, resume=path)
