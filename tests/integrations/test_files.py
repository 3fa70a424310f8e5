"""Files that frameworks write, made by themselves: read, cut, and loaded again."""

import argparse

import pytest
import torch
from torch import nn

import orthotrain
from orthotrain.lowrank.state_dicts import compress_state, read_any, survey

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_sharded_folder_of_transformers_and_plain_loading_of_what_came_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=3, n_head=2, pad_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    stored = read_any(tmp_path / "sharded")
    assert len(stored.files) > 2
    found = survey(stored)
    assert [w.name for w in found.weights if not w.stays][:2] == [
        "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj",
    ]  # fmt: skip
    assert {e.name for e in found.left if "embedding" in e.reason} == {
        "transformer.wte.weight", "transformer.wpe.weight",
    }  # fmt: skip

    small = compress_state(stored, stored_budget=0.8)
    small.save(tmp_path / "small.safetensors")
    loaded = transformers.GPT2LMHeadModel(config).eval()
    orthotrain.restore_structure(loaded, small.tensors)
    missing, unexpected = loaded.load_state_dict(small.tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied, and no part of the file

    (tmp_path / "dense").mkdir()
    config.save_pretrained(tmp_path / "dense")
    compress_state(stored, stored_budget=0.8, form="dense").save(
        tmp_path / "dense" / "model.safetensors"
    )
    dense = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()
    ids = torch.arange(12)[None]
    torch.testing.assert_close(dense(ids).logits, loaded(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_lightning_wrote(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, width=24, options=None):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 16))

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters())
            return {"optimizer": optimizer,
                    "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}  # fmt: skip

    module = Module(options=argparse.Namespace(depth=2))
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(8, 8), batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = read_any(tmp_path / "last.ckpt")
    assert stored.entry == "state_dict"
    assert stored.tensors.keys() == module.state_dict().keys()
    compress_state(stored, energy=0.5).save(tmp_path / "small.safetensors")
    loaded = orthotrain.load(Module(), tmp_path / "small.safetensors")
    assert type(loaded.net[2]).__name__ == "LowRankLinear"


def test_a_checkpoint_that_timm_wrote(tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=32, depth=2)
    ema = ModelEmaV3(model)
    optimizer = torch.optim.AdamW(model.parameters())
    args = argparse.Namespace(model="vit_tiny_patch16_224", lr=1e-3)
    saver = CheckpointSaver(
        model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=71.5)
    stored = read_any(tmp_path / "last.pth.tar")
    assert (stored.entry, stored.other_entries) == ("state_dict", ("state_dict_ema",))
    assert read_any(tmp_path / "last.pth.tar", key="state_dict_ema").tensors.keys() == (
        model.state_dict().keys()
    )
    found = {weight.name: weight for weight in survey(stored).weights}
    assert found["blocks.0.attn.qkv"].shape == "576x192"  # one layer holds all three
    made = compress_state(stored, stored_budget=0.6)
    made.save(tmp_path / "small.safetensors")
    fresh = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=32, depth=2).eval()
    loaded = orthotrain.load(fresh, tmp_path / "small.safetensors")
    expected = orthotrain.compress(model.eval(), stored_budget=0.6)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ranks = {layer.name: layer.rank for layer in expected.compression.layers}
    assert {layer.name: layer.rank for layer in made.report.layers} == ranks
    torch.testing.assert_close(loaded(x), expected(x), rtol=1e-4, atol=1e-5)
