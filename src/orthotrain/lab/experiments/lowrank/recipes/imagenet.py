"""ViT-B/16 and ResNet-RS-101 on ImageNet, or on any folder of images in its layout.

``full`` has the settings found in the authors' code, where there are any: AdamW from 1e-3 to 1e-5
with 15 epochs of warm-up, weight decay .01, label smoothing .1, mixup, first and last layer dense.
Which of them made which published table is stated nowhere. The 125 epochs are the paper's. The
batch size, the crops and the strength of mixup are the usual ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from orthotrain.lab.experiments.classifier.config import DataConfig, OptimConfig, RecordConfig
from orthotrain.lab.experiments.lowrank.config import LowRankConfig
from orthotrain.lab.experiments.lowrank.image_config import (
    FoundResNet,
    FoundResNetRun,
    FoundViT,
    FoundViTRun,
    image_variants,
)
from orthotrain.lab.run.experiment import Experiment

_EPOCHS: Final = 125
# Of 1,281,167 images a tenth is held out; batches of 1024.
_STEPS: Final = _EPOCHS * (1_153_051 // 1024)
_RATE: Final = 1e-3
_SMALL_RATE: Final = 2e-3

_DATA = DataConfig(
    name="image-folder", image_size=224, batch_size=1024, crop_padding=0, crop_area=0.08,
    flip=True, mixup=0.2,
)  # fmt: skip
_OPTIM = OptimConfig(
    epochs=_EPOCHS, lr=_RATE, min_lr=_RATE / 100, warmup_fraction=15 / _EPOCHS, weight_decay=0.01,
    clip_norm=None, label_smoothing=0.1,
)  # fmt: skip
_RECORD = RecordConfig(
    log_every_steps=50, eval_every_epochs=1, stability_every_epochs=5, checkpoint_every_epochs=1
)


def _paper(delay: int, every: int, rank_rtol: float) -> LowRankConfig:
    return LowRankConfig(
        delay_fraction=delay / _STEPS,
        every_fraction=every / _STEPS,
        rank=f"rank_rtol={rank_rtol}",
        layer_fraction=0.1,
        dense_first=True,
        only_if_cheaper=False,
    )


_VIT = FoundViTRun(
    data=_DATA,
    model=FoundViT(patch_size=16, width=768, depth=12, heads=12),
    optim=_OPTIM,
    # The latest of the authors' settings for ImageNet.
    paper=_paper(10_000, 2000, 0.2),
    record=_RECORD,
    seeds=(0,),
    precision="bfloat16",
)
_RESNET = FoundResNetRun(
    data=replace(_DATA, image_size=160),
    model=FoundResNet(depth=101, stem="imagenet"),
    optim=replace(_OPTIM, clip_norm=1.0),
    # Their settings for ResNet-RS. 200 steps lie within the warm-up.
    paper=_paper(200, 100, 0.15),
    record=_RECORD,
    seeds=(0,),
    precision="bfloat16",
)


def _recipe(
    name: str,
    title: str,
    full: FoundViTRun | FoundResNetRun,
    *,
    cpu: FoundViT | FoundResNet,
    smoke: FoundViT | FoundResNet,
) -> Experiment:
    at_64: dict[str, Any] = {
        "data": replace(full.data, image_size=64, batch_size=32, crop_area=0.25),
        "optim": replace(full.optim, epochs=20, lr=_SMALL_RATE, min_lr=_SMALL_RATE / 100),
        # Times as of the mini ViT on CIFAR-10: here 10,000 steps are the whole run.
        "paper": replace(full.paper, delay_fraction=50 / 300, every_fraction=10 / 300),
        "record": RecordConfig.every(steps=20, epochs=1),
        "device": "cpu",
        "precision": "float32",
    }
    tiny: dict[str, Any] = {
        **at_64,
        "data": replace(at_64["data"], batch_size=8),
        "optim": replace(at_64["optim"], epochs=4),
    }
    networks: dict[str, Any] = {"cpu": cpu, "smoke": smoke}
    return Experiment(
        name=name,
        title=title,
        config={
            "smoke": replace(full, **tiny, model=networks["smoke"]),
            "cpu": replace(full, **at_64, model=networks["cpu"]),
            "full": full,
        },
        variants=image_variants,
        build="orthotrain.lab.experiments.lowrank.build:build",
        page="orthotrain.lab.experiments.lowrank.page:PAGE",
    )


VIT = _recipe(
    "imagenet-vit-b16",
    "ViT-B/16 on a folder in ImageNet's layout",
    _VIT,
    cpu=FoundViT(patch_size=16, width=128, depth=4, heads=4),
    smoke=FoundViT(patch_size=8, width=32, depth=2, heads=2),
)
RESNET = _recipe(
    "imagenet-resnetrs101",
    "ResNet-RS-101 on a folder in ImageNet's layout",
    _RESNET,
    cpu=FoundResNet(depth=18, width=16, stem_channels=32, stem="imagenet"),
    smoke=FoundResNet(depth=18, width=8, stem_channels=16, stem="imagenet"),
)
