"""A run so small that a test can train it, kill it and train it again."""

from dataclasses import replace

import torch

from orthotrain.data.splits import ImageData, Split
from orthotrain.lab.experiments.lowrank.config import (
    DENSE,
    LowRankConfig,
    LowRankRun,
    LowRankVariant,
)
from orthotrain.lab.run.config import Job, ModelConfig, OptimConfig, RecordConfig, variants_of

LOWRANK = LowRankConfig(
    delay_fraction=0.25, every_fraction=0.125, rank="rank_rtol=0.3", only_if_cheaper=False
)
CONFIG = LowRankRun(
    recipe="tiny",
    scale="smoke",
    data=replace(LowRankRun(recipe="tiny").data, batch_size=8),
    model=ModelConfig(patch_size=4, width=12, depth=2, heads=2, mlp_ratio=2.0),
    optim=OptimConfig(epochs=4, lr=1e-2, min_lr=1e-3),
    paper=LOWRANK,
    tuned=LOWRANK,
    record=RecordConfig(
        log_every_steps=1,
        eval_every_epochs=1,
        stability_every_epochs=1,
        checkpoint_every_epochs=1,
    ),
    seeds=(0,),
    device="cpu",
)
# 4 epochs of 4 batches.
TOTAL_STEPS = 16


class CountedTest:
    """The test part; counts how often it is read."""

    def __init__(self, split):
        self.split = split
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return self.split


def split_of(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randn(n, 1, 8, 8, generator=generator) + labels[:, None, None, None]
    return Split(images, labels)


def tiny_data():
    return ImageData("tiny", split_of(34, 0), split_of(12, 1), CountedTest(split_of(15, 2)), 3)


def job_of(name=DENSE, seed=0):
    variant = next(v for v in variants_of(CONFIG) if v.name == name)
    return Job(variant, seed, CONFIG.model)


def variant_of(name, **changes):
    return LowRankVariant(name, name, "", **changes)


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt:
    """Progress callback that ends the training when it has done ``step`` steps."""

    def __init__(self, step, stage="stepped"):
        self.step = step
        self.stage = stage

    def __call__(self, progress):
        if progress.stage == self.stage and progress.step == self.step:
            raise Killed
